-- A response that the provider keeps (durability `background`): with these a takeover goes on with it.
-- The first two are written with the events that they belong to.
ALTER TABLE steps ADD COLUMN response_id text;
ALTER TABLE steps ADD COLUMN cursor bigint;
-- The place of the call's first item in the turn's output.
ALTER TABLE steps ADD COLUMN first_output_index int;

-- A turn that could not be answered by the model it was admitted for.
ALTER TABLE turns ADD COLUMN original_model text;
ALTER TABLE turns ADD COLUMN degraded text CHECK (degraded IN ('fallback', 'static_answer'));

CREATE VIEW fallbacks_by_day AS
SELECT project_id, agent, admitted_on AS day, count(*) AS turns,
  count(*) FILTER (WHERE degraded = 'fallback') AS fallbacks,
  count(*) FILTER (WHERE degraded = 'static_answer') AS static_answers,
  round(count(degraded) / count(*)::numeric, 4) AS fallback_rate
FROM turns
GROUP BY project_id, agent, admitted_on;
