// messages.md: the fields, types and limits of the messages that a buyer signs, reads or sends. The tables below are
// those of the page. Amounts and prices are BigInt; every other integer fits a number.

import { createHash } from 'node:crypto'
import { decode, encode, isCanonical } from './msgpack.mjs'
import { admit } from './keys.mjs'
import { Refused } from './refused.mjs'

export const sha256 = (...parts) => new Uint8Array(createHash('sha256').update(Buffer.concat(parts)).digest())
export const same = (a, b) => Buffer.compare(a, b) === 0

// Section 1: the types that fields are of.
const bytes = (least, most = least) => ({ kind: 'bytes', least, most })
const integer = (least, most) => ({ kind: 'integer', least: BigInt(least), most: BigInt(most), big: false })
const bigInteger = (least, most) => ({ kind: 'integer', least, most, big: true })
const text = (least, most, pattern = /^/) => ({ kind: 'text', least, most, pattern })
const oneOf = (...words) => ({ kind: 'text', least: 0, most: 128, pattern: new RegExp(`^(${words.join('|')})$`) })
const list = (least, most, of) => ({ kind: 'list', least, most, of })
const part = (name) => ({ kind: 'part', name })

const key = bytes(33)
const id = bytes(32)
const digest = { kind: 'bytes', least: 0, most: 32, digest: true }
const number = integer(1, 2 ** 53)
const tokens = integer(0, 8_000_000)
const amount = bigInteger(0n, 2n ** 63n - 1n)
const price = bigInteger(0n, 10n ** 12n)
const time = integer(0, 253402300799999)
const duration = integer(0, 10 ** 9)
const words = text(0, 128)
const currency = text(0, 128, /^[A-Z]{3}$/)
const country = text(0, 128, /^[A-Z]{2}$/)
const side = oneOf('provider', 'client', 'operator')
const status = oneOf('completed', 'cancelled', 'interrupted', 'unacknowledged', 'failed', 'empty', 'refused', 'late')

const PARTS = {
  ModelOffer: [
    ['model', text(1, 128)], ['tariff', part('Tariff')], ['context_tokens', integer(1, 8_000_000)],
    ['concurrency', integer(1, 100_000)], ['endpoints', list(1, 8, words)], ['engine', words], ['quantization', words],
    ['weights_sha256', digest], ['tokenizer_sha256', digest], ['template_sha256', digest],
    ['schedule', list(0, 64, part('TariffPeriod'))], ['most_tokens_per_s', integer(0, 1_000_000)]
  ],
  Tariff: [['input_upm', price], ['cached_input_upm', price], ['output_upm', price]],
  TariffPeriod: [
    ['weekdays', integer(1, 127)], ['from_minute', integer(0, 1439)], ['until_minute', integer(1, 1440)],
    ['tariff', part('Tariff')]
  ],
  DataTerms: [['country', country], ['prompt_retention_days', integer(0, 3650)], ['dpa_sha256', digest]],
  Terms: [
    ['window_tokens', integer(16, 65536)], ['credit_limit_pico', amount], ['max_open_orders', integer(1, 1024)],
    ['channel_days', integer(1, 366)], ['dispute_days', integer(1, 366)], ['settlement_days', integer(1, 366)],
    ['counting_rule', words], ['refund_rule', words]
  ],
  BatchTerms: [['batch_requests', integer(1, 16)], ['batch_ms', integer(0, 100)]],
  Usage: [['prompt_tokens', tokens], ['cached_tokens', tokens], ['output_tokens', tokens]],
  RequestLine: [
    ['status', status], ['finish_reason', text(0, 32)], ['usage', part('Usage')], ['request_commitment', id],
    ['response_commitment', id], ['first_token_ms', duration], ['total_ms', duration]
  ]
}

/** What is signed: payload type, cap of the payload in bytes, fields. A third item is what is left out (rule 1). */
export const MESSAGES = {
  Offer: {
    type: '/p2pgrid/offer/1',
    cap: 32768,
    fields: [
      ['provider', key], ['sequence', number], ['valid_from_ms', time], ['valid_until_ms', time], ['operator', words],
      ['currency', currency], ['addresses', list(0, 16, text(0, 256))], ['data_terms', part('DataTerms')],
      ['models', list(1, 64, part('ModelOffer'))], ['gpus', list(0, 64, words)], ['terms', part('Terms')],
      ['utc_offset_minutes', integer(-840, 840)], ['card', digest],
      ['batch', part('BatchTerms'), { batch_requests: 1, batch_ms: 0 }]
    ],
    rules: (offer) => {
      const periods = offer.models.flatMap((model) => model.schedule)
      const tariffs = [...offer.models, ...periods].map((each) => each.tariff)
      return offer.valid_until_ms > offer.valid_from_ms &&
        new Set(offer.models.map((model) => model.model)).size === offer.models.length &&
        tariffs.every((tariff) => tariff.cached_input_upm <= tariff.input_upm) &&
        periods.every((period) => period.until_minute > period.from_minute)
    }
  },
  Channel: {
    type: '/p2pgrid/channel/1',
    cap: 1024,
    fields: [
      ['channel', id], ['provider', key], ['client', key], ['provider_nonce', id], ['client_nonce', id],
      ['currency', currency], ['credit_limit_pico', amount], ['window_tokens', integer(16, 65536)],
      ['max_open_orders', integer(1, 1024)], ['opened_ms', time], ['expires_ms', time],
      ['dispute_days', integer(1, 366)], ['continues', digest]
    ],
    rules: (channel) => channel.expires_ms > channel.opened_ms
  },
  Order: {
    type: '/p2pgrid/order/1',
    cap: 1024,
    fields: [
      ['channel', id], ['order_number', number], ['offer', id], ['model', text(1, 128)], ['endpoint', words],
      ['request_commitment', id], ['max_prompt_tokens', tokens], ['max_output_tokens', tokens],
      ['max_amount_pico', amount], ['ordered_ms', time], ['first_token_deadline_ms', time], ['prompt_tokens', tokens],
      ['max_requests', integer(1, 16), 1]
    ],
    rules: () => true
  },
  Meter: {
    type: '/p2pgrid/meter/1',
    cap: 1024,
    fields: [
      ['channel', id], ['order_number', number], ['tick', number], ['usage', part('Usage')], ['amount_pico', amount],
      ['response_commitment', id], ['metered_ms', time]
    ],
    rules: () => true
  },
  Voucher: {
    type: '/p2pgrid/voucher/1',
    cap: 1024,
    fields: [
      ['channel', id], ['order_number', number], ['tick', number], ['meter', id], ['usage', part('Usage')],
      ['amount_pico', amount]
    ],
    rules: () => true
  },
  Receipt: {
    type: '/p2pgrid/receipt/1',
    cap: 6144,
    fields: [
      ['channel', id], ['receipt_number', number], ['previous', id], ['order_number', number], ['order', id],
      ['offer', id], ['model', text(1, 128)], ['usage', part('Usage')], ['amount_pico', amount],
      ['channel_total_pico', amount], ['status', status], ['finish_reason', text(0, 32)], ['request_commitment', id],
      ['response_commitment', id], ['first_token_ms', duration], ['total_ms', duration], ['issued_ms', time],
      ['mentions', list(0, 16, id)], ['requests', list(0, 16, part('RequestLine')), []]
    ],
    rules: (receipt) =>
      [receipt, ...receipt.requests].every(({ usage }) => usage.cached_tokens <= usage.prompt_tokens) &&
      new Set(receipt.mentions.map((each) => Buffer.from(each).toString('hex'))).size === receipt.mentions.length &&
      (receipt.requests.length === 0 || receipt.status === 'completed') &&
      !receipt.requests.some((line) => line.status === 'interrupted' || line.status === 'unacknowledged')
  },
  Dispute: {
    type: '/p2pgrid/dispute/1',
    cap: 1024,
    fields: [
      ['channel', id], ['receipt_number', number], ['receipt', id], ['by', side],
      ['reason', text(0, 128, /^[a-z][a-z0-9-]{0,62}$/)], ['statement', text(0, 256)], ['owed_pico', amount],
      ['disputed_ms', time]
    ],
    rules: (dispute) => dispute.by !== 'operator'
  }
}

/** Section 9: what travels on a link unsigned. */
export const FRAMES = {
  ChannelRequest: [
    ['client_nonce', id], ['offer', id], ['now_ms', bigInteger(0n, 2n ** 64n - 1n)], ['continues', digest]
  ],
  OrderOpening: [['order', bytes(0, 4096)], ['commitment_key', id], ['body_bytes', integer(2, 2 ** 23)]],
  Refusal: [['code', text(0, 64)], ['message', text(0, 512)], ['retry_after_ms', integer(0, 3_600_000)]],
  Head: [['status', integer(100, 599)], ['content_type', words]]
}

/** The payload of a message given by its fields. */
export function writeMessage (name, fields) {
  return encode(toArray(MESSAGES[name].fields, fields))
}

/** A message's fields, of a payload: record.md, rule 13, steps 2 to 6. */
export function readMessage (name, payload) {
  const message = MESSAGES[name]
  if (payload.length > message.cap) throw new Refused('oversize', `${name} of ${payload.length} bytes`)
  const [fields, digests] = readArray(message.fields, payload, name)
  if (!digests.every((each) => each.length === 0 || each.length === 32) || !message.rules(fields)) {
    throw new Refused('out-of-range', name)
  }
  if (name === 'Channel' && !same(fields.channel, channelId(fields))) throw new Refused('channel-id')
  return fields
}

/** Steps 7 and 8 of the same rule: a Channel's keys. */
export function checkChannelKeys (channel) {
  if (same(channel.provider, channel.client)) throw new Refused('same-party')
  admit(channel.provider)
  admit(channel.client)
}

export function writeFrame (name, fields) {
  return encode(toArray(FRAMES[name], fields))
}

/** Rule 25: anything that is not as it should be is a violation. */
export function readFrame (name, payload) {
  try {
    return readArray(FRAMES[name], payload, name)[0]
  } catch (error) {
    if (error instanceof Refused) throw new Refused('violation', error.message)
    throw error
  }
}

/** Rule 10. */
export function channelId ({ provider, client, provider_nonce: theirs, client_nonce: ours }) {
  return sha256(Buffer.from('p2pgrid/channel/1'), provider, client, theirs, ours)
}

function toArray (table, fields) {
  const values = table.map(([name, type]) => toValue(type, fields[name]))
  const [name, type, leftOut] = table.at(-1)
  const isLeftOut = leftOut !== undefined &&
    (fields[name] === undefined || same(encode(toValue(type, fields[name])), encode(toValue(type, leftOut))))
  return isLeftOut ? values.slice(0, -1) : values
}

function toValue (type, value) {
  if (value === undefined) return value
  if (type.kind === 'part') return toArray(PARTS[type.name], value)
  if (type.kind === 'list') return value.map((each) => toValue(type.of, each))
  return value
}

/** Fields by name, and all digests among them, whose length is looked at last. */
function readArray (table, payload, name) {
  const values = decode(payload)
  const digests = []
  const fields = fromArray(table, values, digests, name)
  if (!isCanonical(values, payload)) throw new Refused('not-canonical', name)
  return [fields, digests]
}

function fromArray (table, values, digests, where) {
  if (!Array.isArray(values)) throw new Refused('malformed', `${where} is no array`)
  const [last, type, leftOut] = table.at(-1)
  const fields = {}
  if (leftOut !== undefined) {
    if (values.length === table.length - 1) fields[last] = leftOut
    else if (same(encode(values.at(-1) ?? []), encode(toValue(type, leftOut)))) {
      throw new Refused('malformed', `${where}.${last} is written, and should be left out`)
    }
  }
  if (values.length !== table.length - (last in fields ? 1 : 0)) throw new Refused('malformed', `fields of ${where}`)
  values.forEach((value, n) => {
    const [name, type] = table[n]
    fields[name] = fromValue(type, value, digests, `${where}.${name}`)
  })
  return fields
}

function fromValue (type, value, digests, where) {
  if (type.kind === 'part') return fromArray(PARTS[type.name], value, digests, where)
  const length = { bytes: value.length, integer: value, list: value.length, text: 0 }[type.kind]
  const isOfType = {
    bytes: () => value instanceof Uint8Array,
    integer: () => typeof value === 'bigint',
    list: () => Array.isArray(value),
    text: () => typeof value === 'string' && type.pattern.test(value)
  }[type.kind]()
  if (!isOfType) throw new Refused('malformed', `${where} has another type`)
  const size = type.kind === 'text' ? [...value].length : length // characters are code points
  if (size < type.least || size > type.most) throw new Refused('malformed', `${where} is past its limits`)
  if (type.kind === 'list') return value.map((each, n) => fromValue(type.of, each, digests, `${where}[${n}]`))
  if (type.digest) digests.push(value)
  return type.kind === 'integer' && !type.big ? Number(value) : value
}
