// link.md: frames, the handshake, streams and their credit, for the side that dials (D). `Link` knows no socket: bytes
// that came go into `receive`, what is to leave comes out of `takeOutput`. `dialLink` runs one on a libp2p stream.

import './polyfill.mjs'
import { signatureInput } from './record.mjs'
import { Refused, Unavailable } from './refused.mjs'

export const PROTOCOL = '/p2pgrid/session/1'

const VERSION = 1
const HEADER = 9
const MOST_PAYLOAD = 65536
const MOST_GRANT = 2 ** 31 - 1
const LEAST_CREDIT = 131072
const MOST_WAITING = 1024 // messages of one stream that nobody has taken
const PING_AFTER_MS = 15_000
const SILENT_AFTER_MS = 30_000
const HANDSHAKE_MS = 10_000

const HELLO = 0; const PROOF = 1; const READY = 2; const GOAWAY = 3; const PING = 4; const PONG = 5
const OPEN = 6; const CREDIT = 7; const END = 8; const RESET = 9
const FIRST_MESSAGE = 16; const FIRST_CREDITED = 128
const GOAWAY_NAMES = ['shutdown', 'version', 'protocol', 'refused', 'busy', 'timeout']
const SHUTDOWN = 0; const UNKNOWN_VERSION = 1
export const PROTOCOL_FAULT = 2; export const TIMEOUT = 5
const RESET_NAMES = ['cancelled', 'internal', 'refused', 'overloaded']
const REFUSED = 2; const OVERLOADED = 3

export class Link {
  #secret; #listener; #terms; #now; #startedMs; #heardMs; #pingedMs = null
  #phase = 'HANDSHAKE' // then READY, CLOSED
  #input = Buffer.alloc(0)
  #output = []
  #streams = new Map()
  #nextOwn = 1
  #nextTheirs = 2
  #theirStreams = 0 // how many they let us have open
  #theirCredit = 0
  #pings = 0
  #ponged = 0
  #isLeaving = false

  /**
   * `secret` is the client's SecretKey, `listener` the provider's key, which the road has proven. `terms` is what they
   * may do: open so many streams at once, send so many bytes of bulk on each. `onOutput` is told that bytes wait.
   */
  constructor (secret, listener, { streams = 0, credit = 262144 } = {}, now = Date.now, onOutput = () => {}) {
    this.#secret = secret
    this.#listener = listener
    this.#terms = { streams, credit }
    this.#now = now
    this.#startedMs = this.#heardMs = now()
    this.onOutput = onOutput
    this.ready = Promise.withResolvers()
    this.ready.promise.catch(() => {}) // who awaits it is told; nobody has to
    this.failure = null
  }

  get isClosed () { return this.#phase === 'CLOSED' }

  takeOutput () {
    const bytes = Buffer.concat(this.#output)
    this.#output = []
    return bytes
  }

  /** Bytes from the listener. A violation closes the link (rule 3): what came before it counts. */
  receive (bytes) {
    if (this.isClosed) return
    this.#heardMs = this.#now()
    this.#pingedMs = null
    this.#input = Buffer.concat([this.#input, bytes])
    let pong = null
    try {
      while (this.#input.length >= HEADER && !this.isClosed) {
        const length = this.#input.readUInt32BE(0)
        if (length > MOST_PAYLOAD) throw violation(`a payload of ${length} bytes`)
        if (this.#input.length < HEADER + length) break
        const [stream, kind] = [this.#input.readUInt32BE(4), this.#input[8]]
        const payload = this.#input.subarray(HEADER, HEADER + length)
        this.#input = this.#input.subarray(HEADER + length)
        if (kind === PING && this.#phase === 'READY') pong = this.#fixed(stream === 0, payload, 8)
        else this.#frame(stream, kind, payload)
      }
      if (pong !== null) this.#send(0, PONG, pong) // of several that wait only the last
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      const code = error.code === 'version' ? UNKNOWN_VERSION : PROTOCOL_FAULT
      this.close(error, code)
    }
  }

  /** To be called every second or so: the handshake's time, and rule 13. */
  tick () {
    const now = this.#now()
    if (this.isClosed) return
    if (this.#phase === 'HANDSHAKE') {
      if (now - this.#startedMs >= HANDSHAKE_MS) this.close(new Unavailable('timeout', 'no handshake'), TIMEOUT)
    } else if (this.#pingedMs !== null) {
      if (now - this.#pingedMs >= SILENT_AFTER_MS) this.close(new Unavailable('timeout', 'silence'), TIMEOUT)
    } else if (now - this.#heardMs >= PING_AFTER_MS) {
      this.#pingedMs = now
      const number = Buffer.alloc(8)
      number.writeBigUInt64BE(BigInt(++this.#pings))
      this.#send(0, PING, number)
    }
  }

  /** A new stream, once the link is ready. */
  open () {
    if (this.isClosed) throw this.failure
    if (this.#isLeaving || this.#streams.size >= this.#theirStreams) throw new Unavailable('busy', 'no more streams')
    const send = (...frame) => this.#send(...frame)
    const stream = new LinkStream(this.#nextOwn, this.#theirCredit, this.#terms.credit, send)
    this.#nextOwn += 2
    this.#streams.set(stream.id, stream)
    this.#send(stream.id, OPEN)
    return stream
  }

  /** The end, for a reason; `code` is said to the other side if there is one. */
  close (reason, code = null) {
    if (this.isClosed) return
    if (code !== null) {
      const words = Buffer.from(reason.message).subarray(0, 256)
      this.#send(0, GOAWAY, Buffer.concat([u16(code), words]))
    }
    this.#phase = 'CLOSED'
    this.failure = reason
    this.ready.reject(reason)
    for (const stream of this.#streams.values()) stream.fail(reason)
    this.#streams.clear()
    this.onOutput()
  }

  /** Done: no stream is open, and nothing went wrong. */
  finish () { this.close(new Unavailable('shutdown', 'this side is done'), SHUTDOWN) }

  #frame (stream, kind, payload) {
    if (kind === GOAWAY) {
      if (stream !== 0) throw violation('GOAWAY on a stream')
      return this.#onGoaway(codeAndText(payload))
    }
    if (this.#phase === 'HANDSHAKE') return this.#handshake(stream, kind, payload)
    if (kind === PONG) return this.#onPong(this.#fixed(stream === 0, payload, 8).readBigUInt64BE())
    if (kind === OPEN) return this.#onOpen(stream, payload)
    const isOfStreams = kind >= FIRST_MESSAGE || (kind >= OPEN && kind <= RESET)
    if (stream === 0 || !isOfStreams) throw violation(`kind ${kind} on stream ${stream}`)
    if (kind >= FIRST_CREDITED && payload.length === 0) throw violation('empty bulk')
    if (kind === END) this.#fixed(true, payload, 0)
    if (kind === CREDIT) this.#fixed(true, payload, 4)
    const reset = kind === RESET ? codeAndText(payload) : null
    const open = this.#streams.get(stream)
    if (open === undefined) {
      const wasOpen = stream % 2 === 1 ? stream < this.#nextOwn : stream < this.#nextTheirs
      if (!wasOpen) throw violation(`stream ${stream} was never opened`)
      return // rule 9: closed, and the frame was on its way
    }
    if (reset !== null) open.fail(new Unavailable(RESET_NAMES[reset.code] ?? 'reset', reset.text))
    else open.receive(kind, payload)
    if (open.isClosed) this.#streams.delete(stream)
  }

  /** Rule 5. */
  #handshake (stream, kind, payload) {
    if (stream !== 0) throw violation('a stream before READY')
    if (kind === HELLO && this.#theirCredit === 0) {
      if (payload.length < 2) throw violation('HELLO')
      const version = payload.readUInt16BE(0)
      if (version !== VERSION) throw new Refused('version', `HELLO of version ${version}`)
      this.#fixed(true, payload, 42)
      this.#theirStreams = payload.readUInt32BE(34)
      this.#theirCredit = payload.readUInt32BE(38)
      if (this.#theirCredit < LEAST_CREDIT || this.#theirCredit > MOST_GRANT) throw violation('terms')
      const [listener, own] = [this.#listener, this.#secret.key]
      const input = signatureInput('/p2pgrid/link-proof/1', Buffer.concat([payload.subarray(2, 34), listener, own]))
      const terms = [u32(this.#terms.streams), u32(this.#terms.credit)]
      this.#send(0, PROOF, Buffer.concat([u16(VERSION), own, this.#secret.sign(input), ...terms]))
    } else if (kind === READY && this.#theirCredit > 0) {
      this.#fixed(true, payload, 0)
      this.#phase = 'READY'
      this.ready.resolve()
    } else {
      throw violation(`kind ${kind} in the handshake`)
    }
  }

  #onGoaway ({ code, text }) {
    this.#isLeaving = true
    if (code === SHUTDOWN && this.#phase === 'READY' && this.#streams.size > 0) return // open streams may finish
    this.close(new Unavailable(GOAWAY_NAMES[code] ?? 'goaway', text))
  }

  #onPong (number) {
    if (number <= this.#ponged || number > this.#pings) throw violation('PONG')
    this.#ponged = Number(number)
  }

  #onOpen (stream, payload) {
    this.#fixed(stream === this.#nextTheirs, payload, 0)
    if (this.#terms.streams === 0) throw violation('OPEN, where no stream may be opened')
    this.#nextTheirs += 2
    this.#send(stream, RESET, u16(REFUSED)) // nothing in session.md is asked by the provider
  }

  #fixed (isInPlace, payload, length) {
    if (!isInPlace || payload.length !== length) throw violation('a frame of another form')
    return payload
  }

  #send (stream, kind, payload = Buffer.alloc(0)) {
    this.#output.push(u32(payload.length), u32(stream), Uint8Array.of(kind), payload)
    this.onOutput()
  }
}

/** One exchange: messages out and in. */
export class LinkStream {
  #send; #window
  #sendable; #receivable
  #consumed = 0
  #waiting = [] // messages that came
  #waiters = []
  #endedOwn = false
  #endedTheirs = false
  #failure = null

  constructor (id, theirCredit, ownCredit, send) {
    this.id = id
    this.#window = { theirs: theirCredit, own: ownCredit }
    this.#sendable = theirCredit
    this.#receivable = ownCredit
    this.#send = (kind, payload) => send(id, kind, payload)
  }

  get isClosed () { return this.#failure !== null || (this.#endedOwn && this.#endedTheirs) }

  /** A message, whole. */
  send (kind, payload = new Uint8Array()) {
    if (this.#failure !== null) throw this.#failure
    this.#send(kind, payload)
  }

  /** Bulk of a kind from 128 on, in pieces, as credit allows; what is left when they have said all is not sent. */
  async sendBulk (kind, bytes) {
    for (let at = 0; at < bytes.length;) {
      if (this.#failure !== null) throw this.#failure
      if (this.#endedTheirs || this.#endedOwn) return
      if (this.#sendable === 0) {
        await this.#change()
        continue
      }
      const piece = bytes.subarray(at, at + Math.min(32768, this.#sendable))
      this.#sendable -= piece.length
      this.#send(kind, piece)
      at += piece.length
    }
  }

  /** The next message, `{ kind, payload }`; null once the other side has ended. Fails when the stream does. */
  async next () {
    while (this.#waiting.length === 0) {
      if (this.#failure !== null) throw this.#failure
      if (this.#endedTheirs) return null
      await this.#change()
    }
    const message = this.#waiting.shift()
    if (message.kind >= FIRST_CREDITED) this.#consume(message.payload.length)
    return message
  }

  /** This side has said all. */
  end () {
    if (this.#endedOwn || this.#failure !== null) return
    this.#endedOwn = true
    this.#send(END)
  }

  /** What the link does with a frame of this stream. */
  receive (kind, payload) {
    if (kind === CREDIT) {
      const bytes = payload.readUInt32BE(0)
      if (bytes === 0 || bytes > MOST_GRANT || this.#sendable + bytes > this.#window.theirs) throw violation('CREDIT')
      this.#sendable += bytes
    } else if (this.#endedTheirs) {
      throw violation('after END')
    } else if (kind === END) {
      this.#endedTheirs = true
    } else {
      if (kind >= FIRST_CREDITED) {
        this.#receivable -= payload.length
        if (this.#receivable < 0) throw violation('more than the credit')
      }
      if (this.#waiting.length >= MOST_WAITING) {
        this.#send(RESET, u16(OVERLOADED))
        return this.fail(new Unavailable('overloaded', 'messages came faster than they were taken'))
      }
      this.#waiting.push({ kind, payload })
    }
    this.#wake()
  }

  fail (reason) {
    this.#failure ??= reason
    this.#wake()
  }

  /** Rule 10: grant what was consumed once it is half the window; nothing to who has ended. */
  #consume (bytes) {
    this.#consumed += bytes
    if (this.#endedTheirs || this.#failure !== null || this.#consumed < this.#window.own / 2) return
    this.#receivable += this.#consumed
    this.#send(CREDIT, u32(this.#consumed))
    this.#consumed = 0
  }

  #change () {
    return new Promise((resolve) => { this.#waiters.push(resolve) })
  }

  #wake () {
    for (const resolve of this.#waiters.splice(0)) resolve()
  }
}

/**
 * A link over libp2p (section 6) to the provider at `peer`, a peer id or an address; ready. `signal` aborts the dialling.
 * A connection through a relay, which has limits, will do.
 */
export async function dialLink (host, peer, secret, listener, signal) {
  const road = await host.dialProtocol(peer, PROTOCOL, { signal, runOnLimitedConnection: true })
  let isDue = false
  const flush = () => {
    isDue = false
    const bytes = link.takeOutput()
    if (bytes.length > 0 && road.writeStatus === 'writable') road.send(bytes)
    if (link.isClosed) road.close().catch(() => road.abort(link.failure))
  }
  const link = new Link(secret, listener, {}, Date.now, () => {
    if (isDue) return
    isDue = true
    queueMicrotask(flush) // frames that are ready together leave together
  })
  const timer = setInterval(() => link.tick(), 1000)
  road.addEventListener('message', ({ data }) => link.receive(data.subarray()))
  road.addEventListener('remoteCloseWrite', () => link.close(new Unavailable('lost', 'the provider ended the link')))
  road.addEventListener('close', ({ error }) => {
    clearInterval(timer)
    link.close(new Unavailable('lost', error?.message ?? 'the link was closed'))
  })
  await link.ready.promise
  return link
}

/** GOAWAY's and RESET's payload. What is no UTF-8 is replaced, what is not printable too: people read it. */
function codeAndText (payload) {
  if (payload.length < 2 || payload.length > 258) throw violation('a code and a text')
  const text = payload.subarray(2).toString('utf-8').replace(/\p{C}/gu, '\ufffd')
  return { code: payload.readUInt16BE(0), text }
}

const violation = (what) => new Refused('violation', what)

function u16 (value) {
  return Uint8Array.of(value >> 8, value & 0xff)
}

function u32 (value) {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
