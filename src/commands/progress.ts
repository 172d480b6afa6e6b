/** Where progress is written: a terminal, or a file or pipe that keeps what it gets. */
export interface ProgressStream {
  isTTY?: boolean;
  write(text: string): unknown;
}

const barCells = 30;
const clearLine = "\r\u001b[K";

/** Shows how far a batch is: a bar on a terminal, a line for each element elsewhere. */
export class Progress {
  readonly #total: number;
  readonly #stream: ProgressStream;
  #done = 0;
  #failed = 0;

  constructor(total: number, stream: ProgressStream) {
    this.#total = total;
    this.#stream = stream;
    this.#draw();
  }

  /** An element is done; on a terminal only lines of failures stay. */
  add(line: string, isFailure: boolean): void {
    this.#done += 1;
    if (isFailure) this.#failed += 1;
    if (this.#stream.isTTY !== true) {
      this.#stream.write(`${this.#done}/${this.#total} ${line}\n`);
      return;
    }
    if (isFailure) this.#stream.write(`${clearLine}${line}\n`);
    this.#draw();
    if (this.#done === this.#total) this.#stream.write("\n");
  }

  #draw(): void {
    if (this.#stream.isTTY !== true) return;
    const filled = Math.round((barCells * this.#done) / this.#total);
    const bar = "#".repeat(filled).padEnd(barCells, ".");
    const failed = this.#failed === 0 ? "" : `, ${this.#failed} not completed`;
    this.#stream.write(`${clearLine}[${bar}] ${this.#done}/${this.#total}${failed}`);
  }
}
