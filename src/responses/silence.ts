import { StepFailure, failure } from "../turn/failures.ts";

/** Gives up a request: when its caller does, or when nothing has come for too long. */
export interface SilenceWatch {
  /** Aborted with the caller's reason, or with a `stream_silent` StepFailure. */
  readonly signal: AbortSignal;
  /** Starts to count; the time until `disarm` may be at most `timeoutMs`. */
  arm(timeoutMs: number, waitingFor: string): void;
  disarm(): void;
  /** `end` shall leave the request alone until `rest` settles, or for `timeoutMs` at most. */
  endAfter(rest: Promise<unknown>, timeoutMs: number): void;
  /** Aborts the request if it still runs, and lets go of the caller's signal. */
  end(): void;
}

export function watchSilence(caller: AbortSignal): SilenceWatch {
  const request = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  let isDraining = false;
  const follow = () => request.abort(caller.reason);
  if (caller.aborted) follow();
  else caller.addEventListener("abort", follow, { once: true });
  return {
    signal: request.signal,
    arm(timeoutMs, waitingFor) {
      clearTimeout(timer);
      const message = `The provider sent no ${waitingFor} for ${timeoutMs} ms.`;
      timer = setTimeout(() => {
        request.abort(new StepFailure(failure("stream_silent", message)));
      }, timeoutMs);
    },
    disarm() {
      clearTimeout(timer);
    },
    endAfter(rest, timeoutMs) {
      isDraining = true;
      const limit = setTimeout(() => request.abort(), timeoutMs).unref();
      const finish = () => {
        clearTimeout(limit);
        // Where the body has come to its end this does nothing, and the connection stays open.
        request.abort();
      };
      void rest.then(finish, finish);
    },
    end() {
      clearTimeout(timer);
      caller.removeEventListener("abort", follow);
      if (!isDraining) request.abort();
    },
  };
}
