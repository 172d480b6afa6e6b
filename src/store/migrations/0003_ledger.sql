-- Whom a turn was for, by the request's `safety_identifier` or `user`.
ALTER TABLE turns ADD COLUMN user_id text;

-- How a tool's call ended; `unknown`: its worker died and it may not run twice.
ALTER TABLE steps ADD COLUMN outcome text CHECK (outcome IN ('ok', 'error', 'unknown'));

ALTER TABLE model_calls
  ADD COLUMN failure_code text,
  ADD COLUMN failure_message text,
  -- The first place of the response's output that was the call's to fill.
  ADD COLUMN first_output_index int,
  DROP CONSTRAINT model_calls_certainty_check,
  ADD CONSTRAINT model_calls_certainty_check CHECK (certainty IN ('exact', 'estimated', 'unknown'));

-- Finds the calls of a time range; costs next to nothing where rows come in the order of time.
CREATE INDEX model_calls_by_time ON model_calls USING brin (started_at);

-- Every call with what its cost can be added up by.
CREATE VIEW model_call_costs AS
SELECT call.*, turn.conversation_id, turn.agent, turn.user_id,
  (call.started_at AT TIME ZONE 'UTC')::date AS day
FROM model_calls call JOIN turns turn ON turn.id = call.turn_id;

-- cost_by_turn, cost_by_conversation, cost_by_agent, cost_by_user, cost_by_model, cost_by_day: the
-- same figures, documented in docs/ledger.md; src/store/costs.ts has them for a range of time.
DO $$
DECLARE
  subject text;
  key_column text;
BEGIN
  FOR subject, key_column IN VALUES
    ('turn', 'turn_id'), ('conversation', 'conversation_id'), ('agent', 'agent'),
    ('user', 'user_id'), ('model', 'model'), ('day', 'day')
  LOOP
    EXECUTE format(
      'CREATE VIEW cost_by_%s AS
       SELECT project_id, %I,
         count(DISTINCT turn_id) AS turns,
         count(*) AS calls,
         count(*) FILTER (WHERE outcome = ''used'') AS calls_used,
         count(*) FILTER (WHERE outcome = ''wasted'') AS calls_wasted,
         count(*) FILTER (WHERE certainty = ''exact'') AS calls_exact,
         count(*) FILTER (WHERE certainty = ''estimated'') AS calls_estimated,
         count(*) FILTER (WHERE certainty = ''unknown'') AS calls_unknown,
         count(*) FILTER (WHERE certainty <> ''unknown'' AND cost_usd IS NULL) AS calls_unpriced,
         coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
         coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
         coalesce(sum(cache_write_tokens), 0)::bigint AS cache_write_tokens,
         coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
         coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
         coalesce(sum(cost_usd), 0) AS cost_usd,
         coalesce(sum(cost_usd) FILTER (WHERE outcome = ''wasted''), 0) AS wasted_cost_usd
       FROM model_call_costs GROUP BY project_id, %I',
      subject, key_column, key_column);
  END LOOP;
END
$$;
