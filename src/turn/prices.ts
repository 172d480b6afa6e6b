import { calcPrice } from "@pydantic/genai-prices";
import type { TokenCounts } from "./turn.ts";

/** US dollars per million tokens. */
interface ListPrice {
  input: number;
  cached: number;
  output: number;
}

/** OpenAI's price list of November 2026, for models that genai-prices does not have yet. */
const listPrices: Record<string, ListPrice> = {
  "gpt-6.2-sol": { input: 2, cached: 0.1, output: 10 },
  "gpt-6.1-terra": { input: 1, cached: 0.05, output: 5 },
};

/** Above this many input tokens the whole call costs twice for input and half more for output. */
const longInputTokens = 272_000;
const longInputFactor = 2;
const longOutputFactor = 1.5;

function listedCost(price: ListPrice, usage: TokenCounts): number {
  const isLong = usage.inputTokens > longInputTokens;
  const fresh = usage.inputTokens - usage.cachedTokens;
  const input = fresh * price.input + usage.cachedTokens * price.cached;
  const output = usage.outputTokens * price.output;
  const perMillion = 1_000_000;
  return (
    (input * (isLong ? longInputFactor : 1) + output * (isLong ? longOutputFactor : 1)) / perMillion
  );
}

/**
 * The cost of one call in US dollars by OpenAI's list prices for the default service tier; fees of
 * hosted tools are not in it. Null when the model's price is not known, or the figures contradict
 * each other.
 */
export function priceOf(model: string, usage: TokenCounts): number | null {
  const listed = listPrices[model];
  if (listed !== undefined) return listedCost(listed, usage);
  const counted = {
    input_tokens: usage.inputTokens,
    cache_read_tokens: usage.cachedTokens,
    cache_write_tokens: usage.cacheWriteTokens,
    output_tokens: usage.outputTokens,
  };
  try {
    // Named, because other providers list models of the same name at other prices.
    const price = calcPrice(counted, model, { providerId: "openai" });
    return price?.total_price ?? null;
  } catch {
    // It throws for figures that cannot be, such as more cached tokens than input tokens.
    return null;
  }
}
