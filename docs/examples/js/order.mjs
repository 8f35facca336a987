// session.md, sections 3 to 7 and 9: one order, as its client sees it. `Buyer` is fed what comes on the order's stream
// and says what follows; it opens no socket and writes no file.

import { ResponseCommitment, TokenCounter, requestCommitment } from './counting.mjs'
import { readFrame, same, writeFrame } from './messages.mjs'
import { owedFor, owes, priceOf, tariffAt } from './pricing.mjs'
import { Record } from './record.mjs'
import { Refused } from './refused.mjs'

export const ORDER = 32; export const BODY = 128
const REFUSAL = 33; const HEAD = 34; const METER = 35; const VOUCHER = 36; const RECEIPT = 37
const COUNTERSIGNATURE = 38; const DISPUTE = 39; const CANCEL = 40; const CHUNK = 129

const CLOCKS_MS = 120_000
const MOST_CHUNK = 32768
const MOST_ERROR_BODY = 65536
const BY_VOUCHER = ['interrupted', 'unacknowledged']
const ENDED = ['SETTLED', 'REFUSED', 'DISPUTED', 'BREACHED', 'LOST']

/** What a client knows of a channel's chain: the last receipt's number and id, and the sum up to it. */
export function newChain (channelRecord) {
  return { number: 0, head: channelRecord.id, totalPico: 0n }
}

/**
 * One order. `state` is that of session.md, section 9. Every method returns what follows, in its order:
 * `records` to be made durable first, `send` (kind and payload), `isEnd` if this side has then said all, and `fault`,
 * for which the link is to be closed, with the record that proves it in `evidence`.
 */
export class Buyer {
  #secret; #offer; #channel; #chain; #order; #orderId; #tariff; #counter; #commitment
  #vouched = null // what the last voucher acknowledged: usage and amount
  #ticks = 0
  #httpStatus = 0
  #errorBytes = 0
  #hasCancelled = false

  /** `offer` and `channel` are `{ record, fields }`. `onChunk` is shown each event of the answer once it is counted. */
  constructor ({ secret, offer, channel, chain, onChunk }) {
    this.#secret = secret
    this.#offer = offer
    this.#channel = channel
    this.#chain = chain
    this.#counter = new TokenCounter(1, onChunk)
    this.state = ''
    this.refusal = null
    this.receipt = null
    this.errorBody = ''
  }

  get usage () { return this.#counter.usage }
  get ticks () { return this.#ticks }

  /**
   * Sign an order for `body`, the bytes of a request for one answer of at most `maxTokens`. Without a tokenizer its
   * prompt is taken for the body's bytes and 1024 (rule 3.4).
   */
  place ({ body, endpoint, model, maxTokens, orderNumber, commitmentKey, firstTokenMs, nowMs }) {
    const entry = this.#offer.fields.models.find((each) => each.model === model)
    this.#tariff = tariffAt(this.#offer.fields, entry, nowMs)
    const caps = {
      prompt_tokens: Math.min(body.length + 1024, entry.context_tokens),
      cached_tokens: 0,
      output_tokens: Math.min(maxTokens, entry.context_tokens)
    }
    this.#order = {
      channel: this.#channel.fields.channel,
      order_number: orderNumber,
      offer: this.#offer.record.id,
      model,
      endpoint,
      request_commitment: requestCommitment(commitmentKey, body),
      max_prompt_tokens: caps.prompt_tokens,
      max_output_tokens: caps.output_tokens,
      max_amount_pico: priceOf(this.#tariff, caps),
      ordered_ms: nowMs,
      first_token_deadline_ms: nowMs + firstTokenMs,
      prompt_tokens: 0
    }
    this.#commitment = new ResponseCommitment(commitmentKey)
    const record = Record.sign('Order', this.#order, 'client', this.#secret)
    this.#orderId = record.id
    this.state = 'ORDERED'
    const opening = { order: record.toWire(), commitment_key: commitmentKey, body_bytes: body.length }
    return follows({ records: [record], send: [[ORDER, writeFrame('OrderOpening', opening)], [BODY, body]] })
  }

  cancel () {
    if (this.#hasCancelled || (this.state !== 'ORDERED' && this.state !== 'RECEIVING')) return follows()
    this.#hasCancelled = true
    return follows({ send: [[CANCEL, new Uint8Array()]] })
  }

  lost () {
    if (!ENDED.includes(this.state)) this.state = 'LOST' // settled on the next link (section 10)
    return follows()
  }

  /** A message on the order's stream. */
  on (kind, payload, nowMs) {
    if (ENDED.includes(this.state)) return follows()
    try {
      if (kind === REFUSAL && this.state === 'ORDERED') return this.#onRefusal(payload)
      if (kind === HEAD && this.state === 'ORDERED') return this.#onHead(payload)
      if (kind === CHUNK && this.state === 'RECEIVING') return this.#onChunk(payload)
      if (kind === METER && this.state === 'RECEIVING') return this.#onMeter(payload, nowMs)
      if (kind === RECEIPT) return this.#onReceipt(payload, nowMs)
      throw new Refused('violation', `kind ${kind} where the order is ${this.state}`)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      this.state = 'BREACHED'
      return follows({ fault: error, evidence: error.evidence ?? null })
    }
  }

  #onRefusal (payload) {
    this.refusal = readFrame('Refusal', payload)
    this.state = 'REFUSED'
    return follows({ isEnd: true })
  }

  #onHead (payload) {
    this.#httpStatus = readFrame('Head', payload).status
    this.state = 'RECEIVING'
    return follows()
  }

  #onChunk (payload) {
    if (payload.length > MOST_CHUNK) throw new Refused('violation', 'a CHUNK of over 32 KiB')
    this.#commitment.add(payload)
    if (this.#httpStatus === 200) {
      this.#counter.feed(payload)
    } else {
      this.#errorBytes += payload.length
      if (this.#errorBytes > MOST_ERROR_BODY) throw new Refused('violation', 'an error body of over 64 KiB')
      this.errorBody += payload.toString('utf-8')
    }
    return follows()
  }

  /** Rules 5.9 and 5.12: the voucher repeats what is exactly our own count. */
  #onMeter (payload, nowMs) {
    const [record, meter] = this.#signed('Meter', payload)
    const { usage, amount_pico: amountPico } = meter
    const isOrders = same(meter.channel, this.#order.channel) && meter.order_number === this.#order.order_number
    const judge = judgement(record)
    judge(isOrders, 'wrong-order')
    judge(meter.tick === this.#ticks + 1, 'meter-gap')
    judge(!this.#counter.contradictsItself, 'wrong-count')
    judge(this.#isWithinCaps(usage), 'over-caps')
    judge(sameUsage(usage, this.usage), 'wrong-count')
    judge(amountPico === priceOf(this.#tariff, usage), 'wrong-amount')
    judge(amountPico <= this.#order.max_amount_pico, 'over-caps')
    judge(same(meter.response_commitment, this.#commitment.value), 'wrong-commitment')
    judge(meter.metered_ms <= nowMs + CLOCKS_MS, 'clock-skew')
    this.#ticks = meter.tick
    this.#vouched = { usage, amountPico }
    const fields = {
      channel: meter.channel,
      order_number: meter.order_number,
      tick: meter.tick,
      meter: record.id,
      usage,
      amount_pico: amountPico
    }
    const voucher = Record.sign('Voucher', fields, 'client', this.#secret)
    return follows({ records: [record, voucher], send: [[VOUCHER, voucher.toWire()]] })
  }

  /** Rules 7.2 to 7.4. */
  #onReceipt (payload, nowMs) {
    const [record, receipt] = this.#signed('Receipt', payload)
    const order = this.#order
    const breach = judgement(record)
    breach(receipt.order_number === order.order_number && same(receipt.order, this.#orderId), 'wrong-order')
    breach(receipt.issued_ms <= nowMs + CLOCKS_MS, 'clock-skew')
    breach(same(receipt.channel, order.channel), 'wrong-channel')
    breach(receipt.receipt_number === this.#chain.number + 1, 'receipt-gap') // no other order is open (rule 7.5)
    breach(same(receipt.previous, this.#chain.head), 'broken-link')
    breach(receipt.channel_total_pico === this.#chain.totalPico + receipt.amount_pico, 'wrong-total')
    const isOrders = same(receipt.offer, order.offer) && receipt.model === order.model &&
      same(receipt.request_commitment, order.request_commitment)
    breach(isOrders, 'wrong-order')

    const reason = this.#wrongIn(receipt, breach)
    this.receipt = { record, fields: receipt }
    this.#chain.number = receipt.receipt_number
    this.#chain.head = record.id
    this.#chain.totalPico = receipt.channel_total_pico
    if (reason === '') {
      const final = record.countersign('client', this.#secret)
      this.receipt.record = final
      this.state = 'SETTLED'
      return follows({ records: [final], send: [[COUNTERSIGNATURE, final.toWire()]], isEnd: true })
    }
    const dispute = Record.sign('Dispute', {
      channel: receipt.channel,
      receipt_number: receipt.receipt_number,
      receipt: record.id,
      by: 'client',
      reason,
      statement: '',
      owed_pico: this.#owed(receipt),
      disputed_ms: nowMs
    }, 'client', this.#secret)
    this.state = 'DISPUTED'
    return follows({ records: [record, dispute], send: [[DISPUTE, dispute.toWire()]], isEnd: true, reason })
  }

  /** What is wrong in what a receipt says, though it fits the chain and its order: a code, or nothing. */
  #wrongIn (receipt, breach) {
    const { usage, status, amount_pico: amountPico } = receipt
    if (!this.#isWithinCaps(usage) || receipt.requests.length > 0) return 'over-caps'
    const isLate = receipt.first_token_ms > this.#order.first_token_deadline_ms - this.#order.ordered_ms
    const mayBeFree = status === 'completed' && (usage.output_tokens === 0 || isLate)
    if (amountPico !== owedFor(this.#tariff, usage, status) && !(mayBeFree && amountPico === 0n)) {
      return owes(status) ? 'wrong-amount' : 'refund-rule'
    }
    if (amountPico > this.#order.max_amount_pico) return 'over-caps'
    if (amountPico > 0n && isLate) return 'refund-rule'
    breach(receipt.issued_ms >= this.#order.ordered_ms - CLOCKS_MS, 'time-backwards')
    if (BY_VOUCHER.includes(status)) return this.#isVouched(usage, amountPico) ? '' : 'wrong-count'
    if (!sameUsage(usage, this.usage)) return 'wrong-count'
    if (!same(receipt.response_commitment, this.#commitment.value)) return 'wrong-commitment'
    if (receipt.finish_reason !== (this.#counter.finishReason ?? '')) return 'wrong-status'
    if (status === 'cancelled' && !this.#hasCancelled) return 'wrong-status'
    if (status === 'completed' && (!this.#counter.isDone || this.#counter.hasFailed)) return 'wrong-status'
    if (owes(status) && this.#counter.contradictsItself) return 'wrong-count'
    return receipt.mentions.length > 0 ? 'wrong-mention' : '' // there was nothing to mention yet
  }

  #isVouched (usage, amountPico) {
    const { usage: most, amountPico: mostPico } = this.#vouched ?? { usage: NOTHING, amountPico: 0n }
    return amountPico <= mostPico && Object.keys(most).every((name) => usage[name] <= most[name])
  }

  /** Rule 7.3: what we hold to be owed. */
  #owed (receipt) {
    const { status, amount_pico: billedPico } = receipt
    if (!owes(status) || this.#counter.hasFailed) return 0n
    const hasEnded = this.#counter.isDone || (status === 'cancelled' && this.#hasCancelled)
    const isCounted = hasEnded && this.#isWithinCaps(this.usage) && !this.#counter.contradictsItself
    const own = isCounted && !BY_VOUCHER.includes(status)
      ? priceOf(this.#tariff, this.usage)
      : this.#vouched?.amountPico ?? 0n
    return own < billedPico ? own : billedPico
  }

  #isWithinCaps (usage) {
    return usage.prompt_tokens <= this.#order.max_prompt_tokens && usage.output_tokens <= this.#order.max_output_tokens
  }

  /** A record that the provider must have signed. What it has not is no evidence. */
  #signed (name, payload) {
    let record
    try {
      record = Record.fromWire(payload)
    } catch (error) {
      throw error instanceof Refused ? new Refused('violation', error.message) : error
    }
    const keys = { provider: this.#channel.fields.provider }
    record.checkSigned(keys)
    try {
      return [record, record.read(name, keys)]
    } catch (error) {
      throw Object.assign(error, { evidence: record })
    }
  }
}

const NOTHING = { prompt_tokens: 0, cached_tokens: 0, output_tokens: 0 }

function follows (what = {}) {
  return { records: [], send: [], isEnd: false, fault: null, evidence: null, ...what }
}

function judgement (record) {
  return (isRight, code) => {
    if (isRight) return
    throw Object.assign(new Refused(code), { evidence: record })
  }
}

function sameUsage (a, b) {
  return Object.keys(NOTHING).every((name) => a[name] === b[name])
}
