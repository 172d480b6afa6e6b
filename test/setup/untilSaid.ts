import type { TurnHandle } from "../../src/turnHandle.ts";

/** Waits until a turn that runs has shown this text, by default its first piece of any. */
export async function untilSaid(turn: TurnHandle, text?: string): Promise<void> {
  let said = "";
  for await (const event of turn.events()) {
    if (event.type !== "response.output_text.delta") continue;
    said += String(event["delta"]);
    if (text === undefined || said === text) return;
  }
  throw new Error(`The turn ended after it had said '${said}'.`);
}
