// Holds this program against tests/vectors: `node self-test.mjs [FOLDER]`. Exit code 0 if all fit.
// What the vectors mean is said in the README beside them.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isDeepStrictEqual } from 'node:util'
import { ResponseCommitment, TokenCounter, requestCommitment } from './counting.mjs'
import { dhtKey } from './dht.mjs'
import { SecretKey, admit, fits, keyOf, peerIdOf } from './keys.mjs'
import { Link } from './link.mjs'
import { FRAMES, MESSAGES, checkChannelKeys, readFrame, readMessage, writeMessage } from './messages.mjs'
import { Buyer, newChain } from './order.mjs'
import { owedFor, priceOf, tariffAt } from './pricing.mjs'
import { Record } from './record.mjs'
import { Refused } from './refused.mjs'

const folder = process.argv[2] ?? fileURLToPath(new URL('../../../tests/vectors', import.meta.url))
let checked = 0
const faults = []

function vectors (name) {
  // Numbers go to 2^63-1: those that a JavaScript number does not hold are read as BigInt.
  const text = readFileSync(join(folder, `${name}.json`), 'utf-8')
  const marked = text.replace(/"(?:[^"\\]|\\.)*"|-?\d{16,}/g, (word) => word[0] === '"' ? word : `"\\u0000${word}"`)
  const isMarked = (value) => typeof value === 'string' && value[0] === '\0'
  return JSON.parse(marked, (_, value) => isMarked(value) ? BigInt(value.slice(1)) : value)
}

/** Hex, in which a word `ab*300` is 300 bytes. */
function bytes (hex) {
  const words = hex.split(' ').map((word) => {
    const [piece, times] = word.split('*')
    return Buffer.from(piece.repeat(Number(times ?? 1)), 'hex')
  })
  return new Uint8Array(Buffer.concat(words))
}

function codeOf (read) {
  try {
    read()
    return ''
  } catch (error) {
    if (error instanceof Refused) return error.code
    throw error
  }
}

function expect (what, found, wanted) {
  checked++
  if (!isDeepStrictEqual(found, wanted)) faults.push({ what, found, wanted })
}

/** Fields as the vectors write them: bytes as hex. Integers of either kind are compared as BigInt. */
function plain (value) {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value === 'number') return BigInt(value)
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, plain(each)]))
  }
  return value
}

for (const { seed, public_key: key, peer_id: peerId } of vectors('keys')) {
  expect(`key of ${seed}`, plain(new SecretKey(bytes(seed)).key), key)
  expect(`peer id of ${key}`, [peerIdOf(bytes(key)), plain(keyOf(peerId))], [peerId, key])
}

for (const { number, message, public_key: key, signature, fault } of vectors('speccheck')) {
  const read = () => {
    const admitted = admit(bytes('01' + key))
    if (!fits(admitted, bytes(message), bytes(signature))) throw new Refused('bad-signature')
  }
  expect(`speccheck ${number}`, codeOf(read), fault)
}

for (const { case: name, message, public_key: key, signature, signature_fits: wanted } of vectors('signatures')) {
  expect(`signature: ${name}`, fits(bytes(key), bytes(message), bytes(signature)), wanted)
}

for (const vector of vectors('records').filter(({ message }) => message in MESSAGES)) {
  const record = Record.fromWire(bytes(vector.wire))
  const fields = readMessage(vector.message, record.payload)
  expect(`${vector.message}: fields`, plain(fields), plain(vector.fields))
  expect(`${vector.message}: payload`, plain(writeMessage(vector.message, fields)), vector.payload)
  expect(`${vector.message}: input`, plain(new Uint8Array(record.input)), vector.signature_input)
  expect(`${vector.message}: id`, plain(record.id), vector.id)
  expect(`${vector.message}: forms`, [plain(record.toWire()), record.toLine()], [vector.wire, vector.text])
  expect(`${vector.message}: text`, Record.fromLine(Buffer.from(vector.text)), record)
  const keys = Object.fromEntries(record.signatures.map(({ role, key }) => [role, key]))
  expect(`${vector.message}: signatures`, codeOf(() => record.read(vector.message, keys)), '')
}

const refused = vectors('refused')
for (const { case: name, key, code } of refused.keys) expect(`key: ${name}`, codeOf(() => admit(bytes(key))), code)
for (const { case: name, peer_id: id, code } of refused.peer_ids) expect(`id: ${name}`, codeOf(() => keyOf(id)), code)
for (const { case: name, wire, code } of refused.wire) {
  expect(`wire: ${name}`, codeOf(() => Record.fromWire(bytes(wire))), code)
}
for (const { case: name, line, code } of refused.lines) {
  expect(`line: ${name}`, codeOf(() => Record.fromLine(bytes(line))), code)
}
for (const { case: name, wire, keys, code } of refused.signed) {
  const wanted = Object.fromEntries(Object.entries(keys).map(([role, key]) => [role, bytes(key)]))
  expect(`signed: ${name}`, codeOf(() => Record.fromWire(bytes(wire)).checkSigned(wanted)), code)
}
for (const { case: name, message, payload, code } of refused.payloads.filter((each) => each.message in MESSAGES)) {
  expect(`${message}: ${name}`, codeOf(() => readMessage(message, bytes(payload))), code)
}
for (const { case: name, payload, code } of refused.payload_keys.filter(({ message }) => message === 'Channel')) {
  expect(`Channel's keys: ${name}`, codeOf(() => checkChannelKeys(readMessage('Channel', bytes(payload)))), code)
}
for (const { case: name, frame, payload, code } of refused.frames.filter((each) => each.frame in FRAMES)) {
  expect(`${frame}: ${name}`, codeOf(() => readFrame(frame, bytes(payload))), code)
}

for (const { network, key, dht_key: wanted } of vectors('discovery')) {
  expect(`DHT key of ${key}`, plain(new Uint8Array(dhtKey(network, key))), wanted)
}

let answer = null
for (const { of, key, body, piece, commitment } of vectors('commitments')) {
  if (of === 'request') {
    expect('commitment to a request', plain(requestCommitment(bytes(key), bytes(body))), commitment)
  } else {
    answer ??= new ResponseCommitment(bytes(key))
    answer.add(bytes(piece))
    expect('commitment to an answer', plain(answer.value), commitment)
  }
}

const tariffOf = (prices) => {
  const [input, cached, output] = prices.map(BigInt)
  return { input_upm: input, cached_input_upm: cached, output_upm: output }
}
const pricing = vectors('pricing')
for (const { tariff, usage, price_pico: price, owed_pico: owed, code } of pricing.amounts) {
  const [prompt, cached, output] = usage
  const counts = { prompt_tokens: prompt, cached_tokens: cached, output_tokens: output }
  expect(`price of ${usage}: code`, codeOf(() => priceOf(tariffOf(tariff), counts)), code ?? '')
  if (code) continue
  expect(`price of ${usage}`, priceOf(tariffOf(tariff), counts), BigInt(price))
  for (const [status, pico] of Object.entries(owed)) {
    expect(`owed for ${status}`, owedFor(tariffOf(tariff), counts, status), BigInt(pico))
  }
}
for (const { utc_offset_minutes: offset, tariff, schedule, prices } of pricing.schedules) {
  const entry = {
    tariff: tariffOf(tariff),
    schedule: schedule.map((each) => ({ ...each, tariff: tariffOf(each.tariff) }))
  }
  for (const { ordered_ms: orderedMs, tariff: wanted } of prices) {
    expect(`tariff at ${orderedMs}`, tariffAt({ utc_offset_minutes: offset }, entry, orderedMs), tariffOf(wanted))
  }
}

/** A long text is a list of pairs: a piece, and how often it stands. */
const long = (text) => typeof text === 'string' ? text : text.map(([piece, times]) => piece.repeat(times)).join('')
for (const { case: name, n, stream, is_stream: isStream, ...wanted } of vectors('counting')) {
  for (const step of [Infinity, 7]) {
    const all = Buffer.from(long(stream))
    if (step < Infinity && all.length > 2 ** 20) continue
    const counter = new TokenCounter(n)
    const read = () => {
      for (let at = 0; at < all.length; at += step) counter.feed(all.subarray(at, at + step))
    }
    expect(`counting: ${name}: is it one`, codeOf(read), isStream ? '' : 'violation')
    if (!isStream) continue
    expect(`counting: ${name}`, {
      prompt_tokens: counter.promptTokens,
      cached_tokens: counter.cachedTokens,
      output_tokens: counter.outputTokens,
      finish_reason: counter.finishReason,
      contradicts_itself: counter.contradictsItself,
      failed: counter.hasFailed,
      done: counter.isDone
    }, wanted)
  }
}

const told = vectors('link')
const plays = (steps) => steps.every(({ do: [what] }) => ['in', 'open', 'send', 'end', 'tick'].includes(what))
for (const { case: name, start, steps } of told.cases.filter(({ side, steps }) => side === 'D' && plays(steps))) {
  let nowMs = 0
  let stream
  const listener = new SecretKey(bytes(told.listener_seed)).key
  const link = new Link(new SecretKey(bytes(told.dialler_seed)), listener, told.terms, () => nowMs)
  expect(`link: ${name}: start`, plain(new Uint8Array(link.takeOutput())), start)
  for (const [n, { do: [what, ...args], events, out, goaway, fault }] of steps.entries()) {
    const happens = {
      in: () => link.receive(bytes(args[0])),
      open: () => { stream = link.open() },
      send: () => args[1] < 128 ? stream.send(args[1], bytes(args[2])) : stream.sendBulk(args[1], bytes(args[2])),
      end: () => stream.end(),
      tick: () => {
        nowMs = args[0]
        link.tick()
      }
    }
    happens[what]()
    // GOAWAY closes the link, but for SHUTDOWN while a stream is open.
    const isGone = events.some(([event, code]) => event === 'goingaway' && (code !== 0 || stream === undefined))
    expect(`link: ${name}: step ${n}: is closed`, link.isClosed, fault !== '' || isGone)
    if (fault === 'violation' || fault === 'version') expect(`link: ${name}: ${n}: fault`, link.failure.code, fault)
    const output = Buffer.from(link.takeOutput())
    const last = goaway === null ? output.length : bytes(out).length // GOAWAY's words are free
    expect(`link: ${name}: step ${n}: out`, output.subarray(0, last).toString('hex'), plain(bytes(out)))
    if (goaway !== null) expect(`link: ${name}: GOAWAY`, [output[last + 8], output.readUInt16BE(last + 9)], [3, goaway])
  }
}

const KINDS = { 128: 'BODY', 32: 'ORDER', 36: 'VOUCHER', 38: 'COUNTERSIGNATURE', 39: 'DISPUTE', 40: 'CANCEL' }
const EVENTS = { REFUSAL: 33, HEAD: 34, METER: 35, RECEIPT: 37, CHUNK: 129, VOUCHER: 36 }
const machines = vectors('machines')
const client = new SecretKey(bytes(machines.client_seed))
const provider = new SecretKey(bytes(machines.provider_seed)).key
for (const { case: name, window_tokens: window, now_ms: nowMs, steps } of machines.orders) {
  const opened = machines.channels[window]
  const [offer, channel] = [Record.fromWire(bytes(opened.offer)), Record.fromWire(bytes(opened.channel))]
  const buyer = new Buyer({
    secret: client,
    offer: { record: offer, fields: offer.read('Offer', { provider }) },
    channel: { record: channel, fields: channel.read('Channel', { provider, client: client.key }) },
    chain: newChain(channel)
  })
  for (const [n, step] of steps.entries()) {
    if (step.side !== 'client') continue
    const what = `machine: ${name}: step ${n}, ${step.event}`
    const at = nowMs + (step.at_ms ?? 0)
    let then
    if (step.event === 'PLACE') {
      const body = Buffer.from(step.data.body)
      then = buyer.place({
        body,
        endpoint: step.data.endpoint,
        model: JSON.parse(step.data.body).model,
        maxTokens: JSON.parse(step.data.body).max_tokens,
        orderNumber: 1,
        commitmentKey: bytes(step.data.commitment_key),
        firstTokenMs: step.data.first_token_timeout_ms,
        nowMs: at
      })
    } else if (step.event === 'CANCELS') then = buyer.cancel()
    else if (step.event === 'LINK_LOST') then = buyer.lost()
    else then = buyer.on(EVENTS[step.event], Buffer.from(bytes(step.data ?? '')), at)
    const fault = then.fault?.code.replace('violation', 'protocol-violation')
    expect(what, [buyer.state, fault, then.isEnd || undefined], [step.state, step.fault, step.ends])
    const out = then.send.map(([kind, payload]) => [KINDS[kind], plain(new Uint8Array(payload))])
    const records = then.records.map((each) => plain(each.id))
    if (buyer.state !== 'DISPUTED') {
      expect(`${what}: out`, out, (step.out ?? []).map(([kind, payload]) => [kind, plain(bytes(payload))]))
      expect(`${what}: records`, records, step.records ?? [])
    } else { // a dispute's words for people are free
      const dispute = (wire) => ({ ...Record.fromWire(wire).read('Dispute', { client: client.key }), statement: '' })
      expect(`${what}: dispute`, plain(dispute(then.send[0][1])), plain(dispute(bytes(step.out[0][1]))))
      expect(`${what}: records`, records[0], step.records[0])
    }
  }
}

for (const { what, found, wanted } of faults) console.error('differs:', what, '\n  found ', found, '\n  wanted', wanted)
console.log(`${checked - faults.length} of ${checked} vectors fit.`)
process.exitCode = faults.length === 0 ? 0 : 1
