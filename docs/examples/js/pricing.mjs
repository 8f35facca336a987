// messages.md, rules 5, 8 and 12: what a usage costs; session.md, rule 6.1: what is owed of it.

import { Refused } from './refused.mjs'

const MOST_PICO = 2n ** 63n - 1n
const OWING = ['completed', 'cancelled', 'interrupted', 'unacknowledged']

export const owes = (status) => OWING.includes(status)

/** Rule 12. `out-of-range` where there is no price. */
export function priceOf (tariff, usage) {
  if (usage.cached_tokens > usage.prompt_tokens) throw new Refused('out-of-range', 'more cached than the prompt')
  const pico = BigInt(usage.prompt_tokens - usage.cached_tokens) * tariff.input_upm +
    BigInt(usage.cached_tokens) * tariff.cached_input_upm + BigInt(usage.output_tokens) * tariff.output_upm
  if (pico > MOST_PICO) throw new Refused('out-of-range', 'an amount over 2^63-1')
  return pico
}

/** Rule 6.1. */
export function owedFor (tariff, usage, status) {
  return owes(status) ? priceOf(tariff, usage) : 0n
}

/** Rule 8: the tariff of `entry`, a ModelOffer of `offer`, that holds at `orderedMs`. */
export function tariffAt (offer, entry, orderedMs) {
  const minutes = Math.floor(orderedMs / 60000) + offer.utc_offset_minutes
  const modulo = (value, by) => ((value % by) + by) % by
  const minute = modulo(minutes, 1440)
  const weekday = modulo(Math.floor(minutes / 1440) + 3, 7)
  const period = entry.schedule.find((each) =>
    (each.weekdays >> weekday & 1) === 1 && each.from_minute <= minute && minute < each.until_minute)
  return (period ?? entry).tariff
}
