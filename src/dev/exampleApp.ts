import { z } from "zod";
import type { App } from "../app.ts";
import type { Config } from "../config.ts";
import { defineTool } from "../tools/defineTool.ts";
import { defaultAgentName, defineAgent } from "../turn/agent.ts";

const currentTime = defineTool({
  name: "current_time",
  description: "Tells the current date and time in a place.",
  parameters: z.object({
    place: z.string().describe("a large city, or an IANA time zone such as Europe/Berlin"),
  }),
  repeatable: true,
  handler: ({ place }) =>
    new Intl.DateTimeFormat("en-GB", {
      dateStyle: "full",
      timeStyle: "long",
      timeZone: timeZoneOf(place),
    }).format(new Date()),
});

/** @throws RangeError for a place that no time zone is named after; the model is told so. */
function timeZoneOf(place: string): string {
  const name = place.trim().replaceAll(" ", "_").toLowerCase();
  const zones = ["UTC", ...Intl.supportedValuesOf("timeZone")].map((zone) => zone.toLowerCase());
  const zone = zones.find((each) => each === name || each.endsWith(`/${name}`));
  if (zone === undefined) throw new RangeError(`No time zone is named after '${place}'.`);
  return zone;
}

/** What a first run has to talk to while the application has not brought its own. */
export function exampleApp({ model, durability }: Config): App {
  const agent = defineAgent({
    name: defaultAgentName,
    model,
    durability,
    instructions: "You are a helpful assistant. Answer briefly.",
    tools: [currentTime.name],
  });
  return { agents: [agent], tools: [currentTime] };
}
