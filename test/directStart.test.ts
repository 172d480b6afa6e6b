import { readFile } from "node:fs/promises";
import type { Client, WorkflowHandle } from "@temporalio/client";
import { WorkflowExecutionAlreadyStartedError, WorkflowFailedError } from "@temporalio/client";
import { ApplicationFailure } from "@temporalio/common";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { gate, text } from "../src/simulator/server.ts";
import { createConversation, readHistory } from "../src/store/conversations.ts";
import { newId } from "../src/turn/ids.ts";
import { maxDirectInputBytes } from "../src/turn/directStart.ts";
import { outputText } from "../src/turn/items.ts";
import { deploy } from "./setup/deployment.ts";
import type { Deployment } from "./setup/deployment.ts";
import { readableHistory } from "./setup/histories.ts";
import { installPythonTemporal, runPython } from "./setup/pythonTemporal.ts";
import { describeWith, sharedTemporal } from "./setup/servers.ts";
import { ended } from "./setup/turnStream.ts";

/** Shorter than the time after which a waiting turn looks again by itself. */
const signalTimeoutMs = 10_000;

const pythonSdk = await installPythonTemporal();
const pythonSkip =
  typeof pythonSdk === "string"
    ? ""
    : ` (skipped: no Temporal SDK for Python: ${pythonSdk.missing})`;

describeWith(["postgres", "temporal"], "a turn that is started in Temporal", () => {
  let deployment: Deployment;
  let temporal: Client;

  beforeAll(async () => {
    deployment = await deploy({ janitor: { roundMs: 200, patienceMs: 500 } });
    ({ temporal } = deployment);
  });

  afterAll(() => deployment.close());

  afterEach(() => deployment.endScript());

  function startDirectly(argument: unknown, workflowId = newId("turn")): Promise<WorkflowHandle> {
    const { taskQueue } = deployment;
    return temporal.workflow.start("conversationTurn", { taskQueue, workflowId, args: [argument] });
  }

  const turnOf = ({ workflowId }: WorkflowHandle) => deployment.turnkeeper.turns.get(workflowId);

  /** The type and the message of the failure that a workflow ended with. */
  async function failureOf(workflow: WorkflowHandle): Promise<ApplicationFailure> {
    const error: unknown = await workflow.result().catch((failure: unknown) => failure);
    expect(error).toBeInstanceOf(WorkflowFailedError);
    const { cause } = error as WorkflowFailedError;
    expect(cause).toBeInstanceOf(ApplicationFailure);
    return cause as ApplicationFailure;
  }

  async function untilStatus(workflow: WorkflowHandle, status: string): Promise<void> {
    const { turns } = deployment.turnkeeper;
    await expect.poll(async () => (await turns.read(workflow.workflowId)).status).toBe(status);
  }

  /** A turn that holds a new conversation until its gate is opened. */
  async function holdConversation() {
    const { database, simulator, turnkeeper } = deployment;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const pause = gate(1);
    simulator.script(text("First answer.", { pauseAfter: pause }));
    const turn = await turnkeeper.turns.start({ input: "First", conversation });
    await pause.reached;
    return { conversation, turn, open: pause.open };
  }

  test.skipIf(pythonSkip !== "")(
    `by the Python of the docs can be read afterwards${pythonSkip}`,
    async () => {
      deployment.simulator.script(text("A workflow is code that lasts."));
      const page = await readFile(new URL("../docs/direct-start.md", import.meta.url), "utf8");
      const code = /```python\n([^]*?)```/.exec(page)?.[1] ?? "";
      const id = newId("turn");
      const { address } = sharedTemporal();
      const printed = await runPython(pythonSdk as string, code, [
        address,
        deployment.taskQueue,
        id,
      ]);
      expect(printed.trim()).toBe("completed");
      const turn = await ended(await deployment.turnkeeper.turns.get(id));
      expect(turn).toMatchObject({ status: "completed", text: "A workflow is code that lasts." });
      const asked = deployment.simulator.requests[0]?.body;
      expect(asked).toMatchObject({ model: "gpt-test", input: [{ role: "user" }] });
    },
  );

  test("returns its status, and is the turn of its workflow's id", async () => {
    deployment.simulator.script(text("Hello."));
    const workflow = await startDirectly({ request: { input: "Hi", model: "gpt-other" } });
    expect(await workflow.result()).toEqual({ status: "completed" });
    const turn = await ended(await turnOf(workflow));
    expect(turn).toMatchObject({ text: "Hello.", response: { model: "gpt-other" } });
    expect(deployment.simulator.requests[0]?.body.model).toBe("gpt-other");
  });

  test(
    "waits for its conversation, and is told when it is granted",
    async () => {
      const { conversation, turn, open } = await holdConversation();
      const { simulator, database } = deployment;
      const workflow = await startDirectly({ request: { input: "Second", conversation } });
      await untilStatus(workflow, "queued");
      simulator.script(text("Second answer."));
      open();
      await ended(turn);
      expect(await workflow.result()).toEqual({ status: "completed" });
      await ended(await turnOf(workflow));
      const history = await readHistory(database, "default", conversation);
      expect(outputText(history)).toBe("First answer.Second answer.");
      const events = await readableHistory(temporal, workflow.workflowId);
      expect(events).toContain('"workflowExecutionSignaledEventAttributes":{');
    },
    signalTimeoutMs,
  );

  test("and cancelled in Temporal while it waits ends as cancelled", async () => {
    const { conversation, turn, open } = await holdConversation();
    const workflow = await startDirectly({ request: { input: "Second", conversation } });
    await untilStatus(workflow, "queued");
    await workflow.cancel();
    expect(await workflow.result()).toEqual({ status: "cancelled" });
    expect(await ended(await turnOf(workflow))).toMatchObject({ status: "cancelled" });
    open();
    await ended(turn);
  });

  test("and cancelled before it is on record ends as cancelled too, and holds nothing", async () => {
    const { database } = deployment;
    const { id: conversation } = await createConversation(database, "default", {}, []);
    const workflow = await startDirectly({ request: { input: "Hi", conversation } });
    await workflow.cancel();
    expect(await workflow.result()).toEqual({ status: "cancelled" });
    expect(await ended(await turnOf(workflow))).toMatchObject({ status: "cancelled" });
    deployment.simulator.reset();
    deployment.simulator.script(text("Free."));
    const next = await startDirectly({ request: { input: "Hi", conversation } });
    expect(await next.result()).toEqual({ status: "completed" });
  });

  test("and terminated while it waits does not keep the conversation once it is granted", async () => {
    const { conversation, turn, open } = await holdConversation();
    const { simulator, turnkeeper } = deployment;
    const workflow = await startDirectly({ request: { input: "Second", conversation } });
    await untilStatus(workflow, "queued");
    const next = await turnkeeper.turns.start(
      { input: "Third", conversation },
      { whenBusy: "queue" },
    );
    await workflow.terminate("by hand");
    simulator.script(text("Third answer."));
    open();
    await ended(turn);
    expect(await ended(await turnOf(workflow))).toMatchObject({
      status: "failed",
      turn: { failure: { class: "workflow_gone" } },
    });
    expect(await ended(next)).toMatchObject({ text: "Third answer." });
  });

  test("is refused as busy where it does not want to wait", async () => {
    const { conversation, turn, open } = await holdConversation();
    const request = { input: "Second", conversation };
    const workflow = await startDirectly({ request, when_busy: "reject" });
    expect(await failureOf(workflow)).toMatchObject({ type: "conversation_busy" });
    open();
    await ended(turn);
  });

  test.each<[string, unknown, string]>([
    ["a request without input", { request: { model: "gpt-test" } }, "missing_required_parameter"],
    ["a field of a wrong type", { request: { input: "Hi", metadata: 1 } }, "invalid_value"],
    ["a request that is no object", { request: "Hi" }, "invalid_value"],
    ["no request", { model: "gpt-test", input: "Hi" }, "missing_required_parameter"],
    ["a text", "Hi", "missing_required_parameter"],
    ["a list", ["Hi"], "missing_required_parameter"],
    ["a field that nobody knows", { request: { input: "Hi" }, queue: true }, "unknown_parameter"],
    ["a wish that nobody knows", { request: { input: "Hi" }, when_busy: "x" }, "invalid_value"],
    ["a project that is not there", { request: { input: "Hi" }, project: "x" }, "unknown_project"],
    [
      "a conversation that is not there",
      { request: { input: "Hi", conversation: "conv_nobody" } },
      "conversation_not_found",
    ],
    [
      "too large an input",
      { request: { input: "\u00e4".repeat(maxDirectInputBytes / 2) } },
      "body_too_large",
    ],
    ["no argument and no turn on record", null, "unknown_turn"],
  ])("fails its workflow for %s, with the refusal's code", async (_, argument, code) => {
    const workflow = await startDirectly(argument);
    const failure = await failureOf(workflow);
    expect(failure.type).toBe(code);
    await expect(turnOf(workflow)).rejects.toMatchObject({ code: "response_not_found" });
    expect(await readableHistory(temporal, workflow.workflowId)).not.toMatch(/\.(ts|js|mjs):\d+/);
  });

  test("with a workflow id that can be no turn's id is refused", async () => {
    const workflow = await startDirectly(
      { request: { input: "Hi" } },
      `not/an id ${newId("turn")}`,
    );
    expect(await failureOf(workflow)).toMatchObject({ type: "invalid_value" });
  });

  test("twice with one workflow id is one turn, and with another request an error", async () => {
    const { simulator } = deployment;
    const id = newId("turn");
    const start = { request: { input: "Hi" } };
    const pause = gate(1);
    simulator.script(text("Once.", { pauseAfter: pause }));
    const first = await startDirectly(start, id);
    await pause.reached;
    const second = startDirectly(start, id);
    await expect(second).rejects.toBeInstanceOf(WorkflowExecutionAlreadyStartedError);
    pause.open();
    expect(await first.result()).toEqual({ status: "completed" });
    const third = await startDirectly(start, id);
    expect(await third.result()).toEqual({ status: "completed" });
    expect(simulator.bill).toHaveLength(1);
    const other = await startDirectly({ request: { input: "Something else" } }, id);
    expect(await failureOf(other)).toMatchObject({ type: "idempotency_key_reused" });
    expect(await ended(await turnOf(first))).toMatchObject({ status: "completed", text: "Once." });
  });
});
