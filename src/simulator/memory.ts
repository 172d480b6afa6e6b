// The responses, conversations and items that the server keeps.
import type { ResponseInputItem } from "openai/resources/responses/responses";
import type { Memory } from "./request.ts";
import type { Run } from "./run.ts";

export interface StoredResponse {
  run: Run;
  /** The request's own input. */
  input: readonly ResponseInputItem[];
  /** All that the model saw. */
  items: readonly ResponseInputItem[];
}

/** Keeps the newest `maxKept` responses. */
export class ResponseMemory implements Memory {
  readonly #maxKept: number;
  readonly #responses = new Map<string, StoredResponse>();
  readonly #conversations = new Map<string, readonly ResponseInputItem[]>();
  readonly #items = new Map<string, ResponseInputItem>();

  constructor(maxKept: number) {
    this.#maxKept = maxKept;
  }

  add(stored: StoredResponse): void {
    this.#responses.set(stored.run.response.id, stored);
    const [oldest] = this.#responses.keys();
    if (this.#responses.size > this.#maxKept && oldest !== undefined) this.delete(oldest);
  }

  get(responseId: string): StoredResponse | undefined {
    return this.#responses.get(responseId);
  }

  delete(responseId: string): boolean {
    const stored = this.#responses.get(responseId);
    for (const item of stored?.run.response.output ?? []) this.#items.delete(item.id ?? "");
    return this.#responses.delete(responseId);
  }

  /** Makes a finished response's items known to later requests. */
  finish({ run, items }: StoredResponse): void {
    const output = run.response.output as ResponseInputItem[];
    for (const item of output) if ("id" in item && item.id) this.#items.set(item.id, item);
    const id = run.response.conversation?.id;
    if (id !== undefined && run.response.status === "completed") {
      this.#conversations.set(id, [...items, ...output]);
    }
  }

  contextOf(responseId: string): readonly ResponseInputItem[] | undefined {
    const stored = this.#responses.get(responseId);
    return stored && [...stored.items, ...(stored.run.response.output as ResponseInputItem[])];
  }

  conversation(id: string): readonly ResponseInputItem[] {
    return this.#conversations.get(id) ?? [];
  }

  item(id: string): ResponseInputItem | undefined {
    return this.#items.get(id);
  }
}
