// session.md: what a client does on a link. Open a channel, buy an answer under it.

import { randomBytes } from 'node:crypto'
import { PROTOCOL_FAULT, TIMEOUT } from './link.mjs'
import { checkChannelKeys, readFrame, same, writeFrame } from './messages.mjs'
import { BODY, Buyer, newChain } from './order.mjs'
import { Record } from './record.mjs'
import { Refused, Unavailable } from './refused.mjs'

const CHANNEL_REQUEST = 18; const CHANNEL = 19; const CHANNEL_OPENED = 20; const REFUSAL = 33
const CLOCKS_MS = 120_000
const DAY_MS = 86_400_000
const EXCHANGE_MS = 30_000
const ANSWER_MS = 600_000

/**
 * Rules 1.1 and 1.2: a channel under `offer` (`{ record, fields }`), written into the book before it is sent back.
 * Returns `{ record, fields }`.
 */
export async function openChannel (link, secret, offer, book) {
  const nonce = new Uint8Array(randomBytes(32))
  const stream = link.open()
  const nothing = new Uint8Array()
  const request = { client_nonce: nonce, offer: offer.record.id, now_ms: BigInt(Date.now()), continues: nothing }
  stream.send(CHANNEL_REQUEST, writeFrame('ChannelRequest', request))
  const proposed = Record.fromWire(await expect(stream, CHANNEL))
  const fields = proposed.read('Channel', { provider: offer.fields.provider })
  checkChannel(fields, offer.fields, secret.key, nonce, Date.now())
  const record = proposed.countersign('client', secret)
  book.write([offer.record, record])
  stream.send(CHANNEL, record.toWire())
  stream.end()
  const opened = await expect(stream, CHANNEL_OPENED)
  if (opened.length > 0) throw new Refused('violation', 'CHANNEL_OPENED with a payload')
  return { record, fields }
}

/** Rule 1.2: our nonce, both keys, the offer's terms, the time. */
export function checkChannel (channel, offer, client, nonce, nowMs) {
  checkChannelKeys(channel)
  const isOurs = same(channel.client, client) && same(channel.provider, offer.provider) &&
    same(channel.client_nonce, nonce) && channel.continues.length === 0
  const isOffered = channel.currency === offer.currency &&
    channel.window_tokens === offer.terms.window_tokens &&
    channel.max_open_orders === offer.terms.max_open_orders &&
    channel.dispute_days === offer.terms.dispute_days &&
    channel.expires_ms === channel.opened_ms + offer.terms.channel_days * DAY_MS
  if (!isOurs || !isOffered) throw new Refused('wrong-channel', 'the channel is not what was asked for')
  const isOnTime = Math.abs(channel.opened_ms - nowMs) <= CLOCKS_MS
  if (!isOnTime) throw new Refused('clock-skew', 'the clocks differ by over 120 s')
}

/**
 * Order an answer to `request`, a body of the OpenAI API without what metering needs, and follow it to the end.
 * `onText` is told the answer's text as it comes. Returns the Buyer: `state` says how it ended.
 */
export async function buy (link, { secret, offer, channel, book, chain = newChain(channel.record), orderNumber = 1 }, {
  request, endpoint, maxTokens, firstTokenMs = 60_000, onText = () => {}
}) {
  const metered = { stream: true, stream_options: { include_usage: true }, return_token_ids: true } // rule 3.2
  const body = Buffer.from(JSON.stringify({ ...request, max_tokens: maxTokens, ...metered }))
  const onChunk = (chunk) => {
    for (const choice of chunk.choices ?? []) {
      const text = choice.delta?.content ?? choice.text
      if (typeof text === 'string') onText(text)
    }
  }
  const buyer = new Buyer({ secret, offer, channel, chain, onChunk })
  const placed = buyer.place({
    body,
    endpoint,
    model: request.model,
    maxTokens,
    orderNumber,
    commitmentKey: new Uint8Array(randomBytes(32)),
    firstTokenMs,
    nowMs: Date.now()
  })
  book.write(placed.records)
  const stream = link.open()
  const sending = follow(stream, placed)
  sending.catch(() => {}) // the reading below fails with it
  const tooLong = new Unavailable('timeout', 'no end of the answer in 10 minutes')
  const deadline = setTimeout(() => link.close(tooLong, TIMEOUT), ANSWER_MS)
  try {
    while (buyer.state === 'ORDERED' || buyer.state === 'RECEIVING') {
      const message = await stream.next()
      if (message === null) throw new Refused('violation', 'the provider ended the stream before the order')
      const then = buyer.on(message.kind, message.payload, Date.now())
      book.write(then.records) // before what depends on it leaves
      if (then.fault !== null) {
        if (then.evidence !== null) book.keepEvidence(then.evidence)
        link.close(then.fault, PROTOCOL_FAULT)
        throw then.fault
      }
      await follow(stream, then)
    }
    await hearEnd(stream)
    return buyer
  } catch (error) {
    if (buyer.state === 'ORDERED' || buyer.state === 'RECEIVING') buyer.lost()
    throw error
  } finally {
    clearTimeout(deadline)
  }
}

/** Send what the machine says. */
async function follow (stream, { send, isEnd }) {
  for (const [kind, payload] of send) {
    if (kind === BODY) await stream.sendBulk(kind, payload)
    else stream.send(kind, payload)
  }
  if (isEnd) stream.end()
}

/** A message of one kind, or what a REFUSAL says. */
async function expect (stream, kind) {
  const message = await Promise.race([stream.next(), timeout(EXCHANGE_MS)])
  if (message?.kind === REFUSAL) {
    const { code, message: words } = readFrame('Refusal', message.payload)
    throw new Unavailable(code, words)
  }
  if (message?.kind !== kind) throw new Refused('violation', `kind ${message?.kind ?? 'END'} where ${kind} was due`)
  return message.payload
}

/** Whoever is done need not wait for the other's END; a program that leaves at once gives it a moment. */
async function hearEnd (stream) {
  await Promise.race([stream.next(), timeout(2000)]).catch(() => {})
}

function timeout (ms) {
  const silence = new Unavailable('timeout', `nothing for ${ms / 1000} s`)
  return new Promise((_resolve, reject) => setTimeout(reject, ms, silence).unref())
}
