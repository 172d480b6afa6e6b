/**
 * A process that owns a development server, for tests that end it in all the ways a process can
 * end. Arguments: the `temporal` program and a database file. On SIGINT it tells whether its server
 * still answers, and stops it.
 */
import { Connection } from "@temporalio/client";
import { startTemporalServer } from "../../src/dev/temporalServer.ts";

const [binary, dbFilename] = process.argv.slice(2) as [string, string];
const server = await startTemporalServer({ binary, dbFilename });

process.once("SIGINT", () => void answerAndStop());
process.stdout.write(`${JSON.stringify({ pid: server.pid, address: server.address })}\n`);

async function answerAndStop(): Promise<void> {
  const connection = await Connection.connect({ address: server.address });
  await connection.workflowService.getSystemInfo({});
  await connection.close();
  await server.stop();
  process.stdout.write("answered, stopped\n");
}
