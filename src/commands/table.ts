/** A column of a table: its head, and whether its cells are figures, which stand on the right. */
export interface Column {
  head: string;
  isFigure?: boolean;
}

/** A line of its own that begins under a column, by the column's number. */
interface Line {
  line: string;
  under: number;
}

/** A row has a cell for each column, or is a line. */
export type Row = readonly string[] | Line;

const gap = "  ";

function isLine(row: Row): row is Line {
  return "line" in row;
}

/** Lines of text with aligned columns, the same on a terminal and in a pipe. */
export function renderTable(columns: readonly Column[], rows: readonly Row[]): string {
  const heads = columns.map((column) => column.head);
  const cells = [heads, ...rows.filter((row): row is readonly string[] => !isLine(row))];
  const widths = columns.map((_, at) => Math.max(...cells.map((row) => row[at]?.length ?? 0)));
  const indent = (under: number) =>
    " ".repeat(widths.slice(0, under).reduce((sum, width) => sum + width + gap.length, 0));
  const render = (row: Row): string => {
    if (isLine(row)) return indent(row.under) + row.line;
    const padded = columns.map(({ isFigure }, at) => {
      const cell = row[at] ?? "";
      return isFigure ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0);
    });
    return padded.join(gap).trimEnd();
  };
  return [heads, ...rows].map(render).join("\n");
}

/** Names and values, one a line. */
export function renderFields(fields: readonly (readonly [string, string])[]): string {
  const width = Math.max(...fields.map(([name]) => name.length));
  return fields.map(([name, value]) => `${name.padEnd(width)}${gap}${value}`).join("\n");
}
