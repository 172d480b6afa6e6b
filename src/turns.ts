import { setTimeout as delay } from "node:timers/promises";
import { reachable } from "./clientParts.ts";
import type { ClientParts } from "./clientParts.ts";
import { admitTurn } from "./store/admission.ts";
import type { Admission, Admitted } from "./store/admission.ts";
import type { BusyMode } from "./store/places.ts";
import { listAgents } from "./store/agents.ts";
import { StoreUnavailable } from "./store/database.ts";
import { cancelTurn } from "./store/cancels.ts";
import type { CancelOutcome } from "./store/cancels.ts";
import { compareReplay, readShown } from "./store/comparisons.ts";
import type { TurnComparison } from "./store/comparisons.ts";
import { markDisconnected, reattachTurn } from "./store/disconnects.ts";
import { admitReplay, readReplay } from "./store/replays.ts";
import { readTurn, readVisibleTurn } from "./store/turns.ts";
import { waitForTurnEnd, watchTurn } from "./turnEvents.ts";
import { TurnHandle } from "./turnHandle.ts";
import type { RecordedEvent } from "./turn/events.ts";
import { Refusal } from "./turn/failures.ts";
import { newId } from "./turn/ids.ts";
import { prepareTurn, requestHash } from "./turn/prepare.ts";
import type { PreparedTurn } from "./turn/prepare.ts";
import type { ReplayOptions } from "./turn/replay.ts";
import { checkId } from "./turn/request.ts";
import type { ResponseRequest } from "./turn/request.ts";
import { isTerminal } from "./turn/turn.ts";
import type { Turn } from "./turn/turn.ts";

/** What a turn is started with: the words of `POST /v1/responses`, and these. */
export interface StartTurn extends ResponseRequest {
  /** Names a registered agent; `model` beside it is the provider's model that it is to use. */
  agent?: string;
}

export interface StartOptions {
  /** The same key gives the same turn [4]; 1 to 255 printable characters. */
  idempotencyKey?: string | undefined;
  /** What to do when another turn holds the conversation. Default `reject`. */
  whenBusy?: BusyMode | undefined;
  /** The key by which the request came in, kept with the turn. */
  apiKeyId?: string | undefined;
  /**
   * Cancels the turn this long after everybody who followed it at a gateway has gone. Default: never;
   * a {@link TurnHandle} has no connection that could break.
   */
  disconnectGraceMs?: number | undefined;
}

/** How long after its connection broke a request may be sent again without a key; SDKs do so at once. */
const reattachWithinMs = 60_000;
/** Longer than callers wait for an answer. */
const reattachMaxAgeMs = 24 * 3_600_000;

/** How long and how often Temporal is told of a turn with a head start. */
const tellForMs = 10 * 60_000;
const tellAgainMs = 2_000;

const idempotencyKeyPattern = /^[\x21-\x7e]{1,255}$/;

function checkIdempotencyKey(key: string | undefined): void {
  if (key === undefined || idempotencyKeyPattern.test(key)) return;
  const rule = "An idempotency key has 1 to 255 printable ASCII characters without spaces.";
  throw new Refusal("invalid_value", rule, "Idempotency-Key");
}

/** Starts, watches and cancels the turns of one project. */
export class Turns {
  readonly project: string;
  readonly #parts: ClientParts;

  constructor(parts: ClientParts, project: string) {
    this.#parts = parts;
    this.project = project;
  }

  /**
   * Puts a turn on record and has Temporal start it. Once this resolves the turn cannot be lost;
   * while Temporal is away it waits on record for the janitor.
   *
   * @throws Refusal when the request cannot be taken; nothing was recorded then, save perhaps with
   *   `store_unavailable`: the same idempotency key finds out.
   */
  async start(input: StartTurn, options: StartOptions = {}): Promise<TurnHandle> {
    const { agent, ...body } = input;
    const request = { ...body, model: body.model ?? null };
    const { turn, isNew, started } = await this.admit(request, options, agent);
    await started;
    return new TurnHandle(this, turn, isNew);
  }

  /**
   * Like {@link start}, for callers that want the record itself. `started` resolves when Temporal
   * knows the turn or could not be told; a process that lives on need not wait for it.
   */
  async admit(
    body: ResponseRequest,
    options: StartOptions = {},
    agent?: string,
  ): Promise<Admitted & { started: Promise<void> }> {
    const { database } = this.#parts;
    checkIdempotencyKey(options.idempotencyKey);
    const prepared = await reachable(async () =>
      prepareTurn(body, await listAgents(database), agent),
    );
    const admission = this.#admissionOf(prepared, options);
    const admitted = await this.#putOnRecord(admission, () => admitTurn(database, admission));
    const work = [this.#begin(admitted), this.#followInterruption(admitted)];
    return { ...admitted, started: Promise.all(work).then(() => {}) };
  }

  async #begin({ turn, isNew }: Admitted): Promise<void> {
    const { engine, headStart } = this.#parts;
    if (turn.status !== "admitted") return;
    if (isNew && headStart?.(turn, () => this.#tell(turn))) return;
    // On record it cannot be lost; if Temporal is away, the janitor starts it later.
    await engine.startTurn(turn).catch(() => {});
  }

  /** What of it fails is made up for by the worker's reread of the record, and by the janitor. */
  async #followInterruption({ turn, interrupted }: Admitted): Promise<void> {
    if (interrupted === null) return;
    await this.#followCancel(interrupted.turnId, interrupted.cancelled, turn.id).catch(() => {});
  }

  /**
   * Starts a turn that replays an ended one: behind its finished steps, or from its start. It runs in
   * the conversation where the turn failed and nothing has come after it, else in a fork at its base.
   * Calls of tools are answered with the outcomes on record [8].
   *
   * @throws Refusal when the turn cannot be replayed; nothing was recorded then.
   */
  async replay(
    turnId: string,
    options: ReplayOptions = {},
    start: Omit<StartOptions, "whenBusy"> = {},
  ): Promise<TurnHandle> {
    const { turn, isNew } = await this.admitReplay(turnId, options, start);
    return new TurnHandle(this, turn, isNew);
  }

  /**
   * Compares a replay with the turn that it replays, as far as it is.
   *
   * @throws Refusal `response_not_found`, or `invalid_value` when the turn is no replay.
   */
  async compare(replayId: string): Promise<TurnComparison> {
    const id = checkId(replayId, "response_id");
    return reachable(() => compareReplay(this.#parts.database, this.project, id));
  }

  /** Like {@link replay}, for callers that want the record itself. */
  async admitReplay(
    turnId: string,
    options: ReplayOptions,
    start: StartOptions,
  ): Promise<Admitted> {
    const { database, engine } = this.#parts;
    checkIdempotencyKey(start.idempotencyKey);
    const original = await this.read(turnId);
    const read = await reachable(() => readReplay(database, original, options));
    const { plan, ...prepared } = read;
    const admission = this.#admissionOf(prepared, start);
    const admitted = await this.#putOnRecord(admission, () =>
      admitReplay(database, admission, plan),
    );
    if (admitted.turn.status === "admitted") await engine.startTurn(admitted.turn).catch(() => {});
    return admitted;
  }

  #admissionOf(prepared: PreparedTurn, options: StartOptions): Admission {
    return {
      ...prepared,
      turnId: newId("turn"),
      project: this.project,
      idempotencyKey: options.idempotencyKey ?? null,
      apiKeyId: options.apiKeyId ?? null,
      whenBusy: options.whenBusy ?? "reject",
      disconnectGraceMs: options.disconnectGraceMs ?? null,
    };
  }

  async #putOnRecord(admission: Admission, admit: () => Promise<Admitted>): Promise<Admitted> {
    return reachable(async () => {
      try {
        return await admit();
      } catch (error) {
        if (!(error instanceof StoreUnavailable)) throw error;
        // Only the answer to the commit may have been lost: then the turn is on record [1].
        const turn = await readTurn(this.#parts.database, this.project, admission.turnId);
        if (turn === null) throw error;
        return { turn, isNew: true, interrupted: null };
      }
    });
  }

  /**
   * Tells Temporal of a turn with a head start, again and again while it is away: a turn that has
   * ended by then is nothing that the janitor looks for, and would be missing in the UI.
   */
  async #tell(turn: Turn): Promise<void> {
    const giveUpAt = Date.now() + tellForMs;
    while (Date.now() < giveUpAt) {
      try {
        return await this.#parts.engine.startTurn(turn);
      } catch {
        await delay(tellAgainMs, undefined, { ref: false });
      }
    }
  }

  /** Notes that whoever started the turn was cut off before the answer, so that {@link reattach} finds it. */
  async markDisconnected(turnId: string): Promise<void> {
    await reachable(() => markDisconnected(this.#parts.database, this.project, turnId));
  }

  /** The turn that the same request, from the same key, started before it was cut off; or `null`. */
  async reattach(body: ResponseRequest, apiKeyId: string | null): Promise<Turn | null> {
    const request = {
      project: this.project,
      apiKeyId,
      requestHash: requestHash(body),
      withinMs: reattachWithinMs,
      maxAgeMs: reattachMaxAgeMs,
    };
    return reachable(() => reattachTurn(this.#parts.database, request));
  }

  /** The handle of a turn that exists. @throws Refusal `response_not_found`. */
  async get(turnId: string): Promise<TurnHandle> {
    return new TurnHandle(this, await this.read(turnId), false);
  }

  /** The record of a turn. @throws Refusal `response_not_found`. */
  async read(turnId: string): Promise<Turn> {
    const turn = await reachable(() =>
      readVisibleTurn(this.#parts.database, this.project, checkId(turnId, "response_id")),
    );
    if (turn !== null) return turn;
    throw new Refusal(
      "response_not_found",
      `Response with id '${turnId}' not found.`,
      "response_id",
    );
  }

  /** Like {@link read}, and the records of dry runs, which no list shows. */
  readAlsoDryRun(turnId: string): Promise<Turn> {
    const id = checkId(turnId, "response_id");
    return reachable(() => readShown(this.#parts.database, this.project, id));
  }

  /** As {@link watchTurn}. */
  watch(
    turn: Turn,
    options: { after?: number; signal?: AbortSignal } = {},
  ): Promise<AsyncIterable<RecordedEvent[]>> {
    return watchTurn(this.#parts, turn, options);
  }

  /** As {@link waitForTurnEnd}. */
  waitForEnd(turn: Turn, signal?: AbortSignal): Promise<Turn> {
    return waitForTurnEnd(this.#parts, turn, signal);
  }

  /** Asks for a turn's end and returns its record after that; a terminal turn stays as it is. */
  async cancel(turnId: string): Promise<Turn> {
    const turn = await this.readAlsoDryRun(turnId);
    if (isTerminal(turn.status)) return turn;
    const outcome = await reachable(() => cancelTurn(this.#parts.database, turn));
    await this.#followCancel(turn.id, outcome);
    return this.readAlsoDryRun(turnId);
  }

  /**
   * Tells of a cancel that is on record: the worker that is at the turn, or those who wait for what its
   * end did, and its workflow.
   *
   * @param begun a turn that was granted its conversation, and that the caller begins.
   */
  async #followCancel(turnId: string, outcome: CancelOutcome, begun?: string): Promise<void> {
    const { database, engine, hub } = this.#parts;
    if (outcome.outcome === "requested") await database.notify("turnkeeper_cancels", turnId);
    else {
      hub.wake();
      await database.notify("turnkeeper_events", "");
      const { granted } = outcome;
      const next =
        granted === null || granted === begun
          ? null
          : await readTurn(database, this.project, granted);
      if (next !== null) await engine.startGranted(next).catch(() => {});
    }
    // Second, so that the worker has ended the turn by the time that the workflow looks.
    await engine.cancelWorkflow(turnId).catch(() => {});
  }
}
