import { createParser } from "eventsource-parser";
import type { EventSourceMessage } from "eventsource-parser";

/**
 * The server-sent events of a response, as they come. The blank line behind the last one may be
 * missing; an event that was cut by the end of the body is among them as well.
 */
export async function* readMessages(response: Response): AsyncGenerator<EventSourceMessage> {
  const messages: EventSourceMessage[] = [];
  const parser = createParser({ onEvent: (message) => messages.push(message) });
  const decoder = new TextDecoder();
  const reader = response.body?.getReader();
  for (;;) {
    const chunk = await reader?.read();
    const isOver = chunk?.value === undefined;
    parser.feed(isOver ? "\n\n" : decoder.decode(chunk.value, { stream: true }));
    for (const message of messages.splice(0)) yield message;
    if (isOver) return;
  }
}
