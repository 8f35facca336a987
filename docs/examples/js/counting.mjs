// session.md, sections 3.1 and 5: what commits to an answer's bytes, and how many tokens they are. Both sides count the
// same bytes, so an honest pair agrees.

import { createHash, createHmac } from 'node:crypto'
import { Refused } from './refused.mjs'

const MOST_EVENT_BYTES = 8 * 2 ** 20
const MOST_DATA_LINES = 1024
const MOST_TOKENS = 8_000_000
const MOST_CHOICES = 1024
const LF = 0x0a
const CR = 0x0d

/** Rule 3.1, of a request. */
export function requestCommitment (commitmentKey, body) {
  return new Uint8Array(createHmac('sha256', commitmentKey).update('request\0').update(body).digest())
}

/** Rule 3.1, of an answer so far: HMAC-SHA256 that can be read at every tick (RFC 2104, for keys of up to 64 bytes). */
export class ResponseCommitment {
  #inner
  #outerPad
  constructor (commitmentKey) {
    const padded = Buffer.alloc(64)
    padded.set(commitmentKey)
    this.#outerPad = padded.map((byte) => byte ^ 0x5c)
    this.#inner = createHash('sha256').update(padded.map((byte) => byte ^ 0x36)).update('response\0')
  }

  add (bytes) { this.#inner.update(bytes) }

  get value () {
    const inner = this.#inner.copy().digest()
    return new Uint8Array(createHash('sha256').update(this.#outerPad).update(inner).digest())
  }
}

/** An answer's Server-Sent Events, counted as their bytes come in. `n` is the request's. */
export class TokenCounter {
  #n
  #onChunk
  #line = [] // pieces of a line that has not ended
  #data = [] // the data lines of an event that has not ended
  #eventBytes = 0
  #lines = 0
  #allowance = 65536
  #id = ''
  #outputs = new Map() // ids by choice
  #prompts = new Map() // ids by prompt
  #reasons = new Map() // finish reasons by choice
  #finalUsage = null

  constructor (n = 1, onChunk = () => {}) {
    this.#n = n
    this.#onChunk = onChunk
    this.outputTokens = 0
    this.contradictsItself = false
    this.hasFailed = false
    this.isDone = false
  }

  get promptTokens () {
    if (this.#prompts.size === 0) return this.#finalUsage?.prompt_tokens ?? 0
    return [...this.#prompts.values()].reduce((sum, count) => sum + count, 0)
  }

  get cachedTokens () {
    return Math.min(this.#finalUsage?.prompt_tokens_details?.cached_tokens ?? 0, this.promptTokens)
  }

  get usage () {
    return { prompt_tokens: this.promptTokens, cached_tokens: this.cachedTokens, output_tokens: this.outputTokens }
  }

  /** That of the lowest choice that has one, as receipts have it (rule 6.3). */
  get finishReason () {
    const reason = this.#reasons.get(Math.min(...this.#reasons.keys())) ?? null
    return reason === null ? null : [...reason].slice(0, 32).join('')
  }

  /** Count bytes of the answer, cut anywhere. */
  feed (bytes) {
    let start = 0
    for (let end; (end = bytes.indexOf(LF, start)) !== -1; start = end + 1) {
      this.#line.push(bytes.subarray(start, end))
      this.#eventBytes += end + 1 - start
      this.#endLine(Buffer.concat(this.#line))
      this.#line = []
    }
    this.#line.push(bytes.subarray(start))
    this.#eventBytes += bytes.length - start
    this.#checkEventBytes()
  }

  #checkEventBytes () {
    if (this.#eventBytes > MOST_EVENT_BYTES) throw new Refused('violation', 'an event of over 8 MiB')
  }

  /** Rule 5.1. A blank line ends an event, unless it is the event's first. */
  #endLine (raw) {
    const line = raw.at(-1) === CR ? raw.subarray(0, -1) : raw
    if (line.length === 0 && this.#lines > 0) return this.#endEvent()
    this.#lines++
    const colon = line.indexOf(0x3a)
    const name = line.subarray(0, colon === -1 ? line.length : colon)
    if (name.toString('latin1') !== 'data') return
    const value = colon === -1 ? Buffer.alloc(0) : line.subarray(colon + 1)
    this.#data.push(value[0] === 0x20 ? value.subarray(1) : value)
    if (this.#data.length > MOST_DATA_LINES) throw new Refused('violation', 'an event of over 1024 lines of data')
  }

  #endEvent () {
    this.#checkEventBytes()
    this.#allowance += this.#eventBytes - 64
    if (this.#allowance < 0) throw new Refused('violation', 'many small events')
    const lines = this.#data
    this.#data = []
    this.#eventBytes = this.#lines = 0
    const data = Buffer.concat(lines.flatMap((line, n) => n === 0 ? [line] : [Uint8Array.of(LF), line]))
    if (data.length === 0) return
    if (this.isDone) throw new Refused('violation', 'the answer goes on after [DONE]')
    if (data.toString('latin1') === '[DONE]') {
      this.isDone = true
      return
    }
    const chunk = readChunk(data)
    this.#count(chunk)
    this.#onChunk(chunk)
  }

  /** Rules 5.2 and 5.3. */
  #count (chunk) {
    if (chunk.error) this.hasFailed = true
    if (chunk.id && this.#id && chunk.id !== this.#id) this.contradictsItself = true
    this.#id ||= chunk.id ?? ''
    const choices = chunk.choices ?? []
    if (chunk.prompt_token_ids) this.#seePrompt(0, chunk.prompt_token_ids.length)
    for (const choice of choices) this.#countChoice(choice)
    if (!chunk.usage || choices.length > 1) return
    const prompt = chunk.usage.prompt_tokens ?? 0
    const output = chunk.usage.completion_tokens ?? 0
    if (choices.length === 1) {
      const index = choices[0].index ?? 0
      const known = this.#prompts.get(Math.floor(index / this.#n)) ?? prompt
      if (output !== this.#outputs.get(index) || prompt !== known) this.contradictsItself = true
      return
    }
    this.#finalUsage = chunk.usage
    const cached = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0
    if (output !== this.outputTokens || prompt !== this.promptTokens || cached > prompt) this.contradictsItself = true
  }

  #countChoice (choice) {
    const index = choice.index ?? 0
    const ids = choice.token_ids?.length ?? 0
    if (choice.prompt_token_ids) this.#seePrompt(Math.floor(index / this.#n), choice.prompt_token_ids.length)
    if (ids > 0 && this.#reasons.has(index)) this.contradictsItself = true
    this.#outputs.set(index, (this.#outputs.get(index) ?? 0) + ids)
    this.outputTokens += ids
    if (this.outputTokens > MOST_TOKENS) throw new Refused('violation', 'an answer of over 8000000 tokens')
    if (choice.finish_reason != null && !this.#reasons.has(index)) {
      this.#reasons.set(index, choice.finish_reason)
      if (choice.finish_reason === 'abort') this.hasFailed = true
    }
  }

  #seePrompt (prompt, count) {
    if ((this.#prompts.get(prompt) ?? count) !== count) this.contradictsItself = true
    if (!this.#prompts.has(prompt)) this.#prompts.set(prompt, count)
  }
}

/** An event's data: a JSON object whose known fields are of their types (rule 5.5). */
function readChunk (data) {
  let chunk
  try {
    chunk = parseJson(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data))
  } catch {
    throw new Refused('violation', 'an event that is no JSON')
  }
  object(chunk, 'an event')
  text(chunk.id, 256)
  ids(chunk.prompt_token_ids)
  if (chunk.error != null) {
    text(object(chunk.error).message, Infinity)
    if (chunk.error.type !== null) text(chunk.error.type, Infinity)
  }
  if (chunk.choices !== undefined && !(Array.isArray(chunk.choices) && chunk.choices.length <= MOST_CHOICES)) {
    throw new Refused('violation', 'choices')
  }
  for (const choice of chunk.choices ?? []) {
    object(choice)
    count(choice.index, MOST_CHOICES - 1)
    ids(choice.token_ids)
    ids(choice.prompt_token_ids)
    if (choice.finish_reason !== null) text(choice.finish_reason, 64)
  }
  if (chunk.usage != null) {
    object(chunk.usage)
    count(chunk.usage.prompt_tokens, MOST_TOKENS)
    if (chunk.usage.completion_tokens !== null) count(chunk.usage.completion_tokens, MOST_TOKENS)
    const details = chunk.usage.prompt_tokens_details
    if (details != null && object(details).cached_tokens !== null) count(details.cached_tokens, MOST_TOKENS)
  }
  return chunk
}

/**
 * JSON as the spec means it: 2.0 is no integer, which JSON.parse does not tell from 2, and half a surrogate pair is no
 * text. Numbers that are not integers are read as null objects: of no account where nobody asks, of a wrong type else.
 */
function parseJson (source) {
  const marked = source.replace(
    /"(?:[^"\\]|\\.)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/gs,
    (word) => word[0] === '"' || /^-?\d+$/.test(word) ? word : '{}'
  )
  return JSON.parse(marked, (name, value) => {
    if (!name.isWellFormed() || (typeof value === 'string' && !value.isWellFormed())) throw new SyntaxError('surrogate')
    return value
  })
}

function object (value) {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Refused('violation', 'no object')
  return value
}

function text (value, most) {
  if (value === undefined) return
  if (typeof value !== 'string' || [...value].length > most) throw new Refused('violation', 'no text, or too long')
}

function count (value, most) {
  if (value !== undefined && !isCount(value, most)) throw new Refused('violation', 'no count')
}

function ids (value) {
  if (value != null && !(Array.isArray(value) && value.every((id) => isCount(id, 2 ** 31 - 1)))) {
    throw new Refused('violation', 'no list of ids')
  }
}

const isCount = (value, most) => Number.isInteger(value) && value >= 0 && value <= most
