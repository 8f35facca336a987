// js-libp2p's client under measurement: the counterpart of ours.py, order for order, on docs/examples/js.
//
//   node client.mjs             take orders on a port of 127.0.0.1
//   node client.mjs once JSON   one cold look-up, and how it went

import './polyfill.mjs'
import { createServer } from 'node:net'
import { mkdtempSync, rmSync } from 'node:fs'
import { randomBytes } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { Book } from './book.mjs'
import { askForOffer, findPeers, readOffer, startHost } from './dht.mjs'
import { SecretKey, keyOf } from './keys.mjs'
import { dialLink } from './link.mjs'
import { newChain } from './order.mjs'
import { Record } from './record.mjs'
import { buy, openChannel } from './session.mjs'

const OFFER_REQUEST = 16; const OFFER = 17
const SOURCE = '/http/1.1'
const TIME_MS = 60_000

class Clock {
  #began = performance.now()
  #cpu = process.cpuUsage()
  ms () { return performance.now() - this.#began }

  /** Of all threads. */
  cpuMs () {
    const { user, system } = process.cpuUsage(this.#cpu)
    return (user + system) / 1000
  }
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b)
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2
}

class Worker {
  #network; #bootstrap
  #joined = null

  constructor ({ network, bootstrap }) {
    this.#network = network
    this.#bootstrap = bootstrap.map((address) => multiaddr(address))
  }

  /** A client that knows a bootstrap peer and nothing else, from the making of its host on. */
  async cold ({ model, wanted }) {
    const clock = new Clock()
    const host = await this.#join()
    try {
      return await this.#offers(host, model, wanted, clock)
    } finally {
      await host.stop()
    }
  }

  /** A client that is joined, with the connections that it keeps by itself, and looks up afresh. */
  async warm ({ model, wanted }) {
    if (this.#joined === null) {
      this.#joined = await this.#join()
      await this.#offers(this.#joined, model, wanted, new Clock())
    }
    return this.#offers(this.#joined, model, wanted, new Clock())
  }

  /** A link by a host that is not connected to the provider (but to its relay); then round trips on it. */
  async link ({ road, peer, libp2p, trips }) {
    const host = await this.#near(road)
    try {
      // Its DHT may have dialled the provider.
      const early = host.getConnections().filter((one) => one.remotePeer.toString() === peer)
      await Promise.all(early.map((one) => one.close()))
      const secret = new SecretKey(randomBytes(32))
      const clock = new Clock()
      const link = await this.#dial(host, libp2p, peer, secret)
      const found = { ms: clock.ms(), cpu_ms: clock.cpuMs() }
      const times = []
      for (let n = 0; n < trips; n++) {
        const one = new Clock()
        await trip(link)
        times.push(one.ms())
      }
      link.finish()
      return { ...found, trip_ms: median(times) }
    } finally {
      await host.stop()
    }
  }

  /** Orders, one after another, on a link and a channel that are there: until the first of the answer comes. */
  async order ({ road, peer, libp2p, model, orders }) {
    const host = await this.#near(road)
    const folder = mkdtempSync(join(tmpdir(), 'p2pgrid-bench-'))
    const book = new Book(join(folder, 'client'))
    try {
      const link = await this.#dial(host, libp2p, peer, book.secret)
      const provider = keyOf(peer)
      const offer = readOffer(Record.fromWire(await trip(link)), provider, Date.now())
      const channel = await openChannel(link, book.secret, offer, book)
      const chain = newChain(channel.record)
      const times = []
      let cpu
      for (let n = 0; n < orders + 2; n++) {
        const clock = new Clock()
        if (n === 2) cpu = clock
        let first = 0
        const buyer = await buy(link, { secret: book.secret, offer, channel, book, chain, orderNumber: n + 1 }, {
          request: { model, messages: [{ role: 'user', content: 'Hello' }] },
          endpoint: '/v1/chat/completions',
          maxTokens: 64,
          onText: () => { first ||= clock.ms() }
        })
        if (buyer.state !== 'SETTLED') throw new Error(`an order ended ${buyer.state}`)
        times.push(first)
      }
      const found = { ms: median(times.slice(2)), cpu_ms: cpu.cpuMs() / orders }
      link.finish()
      return found
    } finally {
      book.close()
      rmSync(folder, { recursive: true })
      await host.stop()
    }
  }

  /** So many MiB from a source, on one stream through a circuit. */
  async pull ({ address, mib }) {
    const host = await this.#start()
    try {
      const stream = await host.dialProtocol(multiaddr(address), SOURCE, { runOnLimitedConnection: true })
      const size = mib * 2 ** 20
      const asked = Buffer.alloc(8)
      asked.writeBigUInt64BE(BigInt(size))
      const clock = new Clock()
      const done = Promise.withResolvers()
      let left = size
      stream.addEventListener('message', ({ data }) => {
        left -= data.byteLength
        if (left <= 0) done.resolve()
      })
      stream.addEventListener('close', () => done.reject(new Error(`the source ended with ${left} bytes to come`)))
      stream.send(asked)
      await done.promise
      return { mib_per_s: mib / clock.ms() * 1e3, cpu_ms: clock.cpuMs() / mib }
    } finally {
      await host.stop()
    }
  }

  #start () {
    return startHost({ network: this.#network, transports: [tcp(), circuitRelayTransport()] })
  }

  /** A host that is connected to nobody; or, if a relay leads to the provider, to all servers, of which it is one. */
  async #near (road) {
    if (road !== 'relayed') return this.#start()
    const host = await this.#join()
    for await (const _peer of findPeers(host, this.#network, 'nothing'));
    return host
  }

  async #join () {
    const host = await this.#start()
    await Promise.any(this.#bootstrap.map(async (peer) => host.dial(peer)))
    return host
  }

  #dial (host, libp2p, peer, secret) {
    return dialLink(host, libp2p.map((address) => multiaddr(address)), secret, keyOf(peer), AbortSignal.timeout(TIME_MS))
  }

  /** Look a model up, ask everybody as they are found, verify what they show. */
  async #offers (host, model, wanted, clock) {
    const held = []
    const asked = []
    const faults = []
    const ask = async (peer) => {
      try {
        if (await askForOffer(host, peer, Date.now()) !== null) held.push(clock.ms())
      } catch (error) {
        faults.push(`${peer}: ${error.message}`)
      }
    }
    for await (const peer of findPeers(host, this.#network, `model/${model}`)) asked.push(ask(peer.id))
    const lookedUpMs = clock.ms()
    await Promise.all(asked)
    if (held.length !== wanted) throw new Error(`${held.length} offers of ${model} were had, of ${wanted}. ${faults.join('; ')}`)
    return { first_ms: held[0], all_ms: held.at(-1), lookup_ms: lookedUpMs, cpu_ms: clock.cpuMs() }
  }
}

/** OFFER_REQUEST on a new stream, until its answer comes. */
async function trip (link) {
  const stream = link.open()
  stream.send(OFFER_REQUEST)
  stream.end()
  const message = await stream.next()
  if (message?.kind !== OFFER) throw new Error(`kind ${message?.kind} where an offer was due`)
  return new Uint8Array(message.payload)
}

async function answer (worker, { do: work, ...order }) {
  const late = Promise.withResolvers()
  const timer = setTimeout(() => late.reject(new Error(`nothing in ${TIME_MS / 1000} s`)), TIME_MS)
  try {
    return await Promise.race([worker[work](order), late.promise])
  } catch (error) {
    return { error: `${error.name}: ${error.message} ${(error.errors ?? []).map((one) => one.message).join('; ')}` }
  } finally {
    clearTimeout(timer)
  }
}

const [how, what] = process.argv.slice(2)
if (how === 'once') {
  const order = JSON.parse(what)
  const began = Date.now() / 1000
  console.log(JSON.stringify({ began_s: began, ...await answer(new Worker(order), { do: 'cold', ...order }) }))
  process.exit(0)
}
const server = createServer((socket) => {
  let worker = null
  let turn = Promise.resolve()
  createInterface({ input: socket }).on('line', (line) => {
    turn = turn.then(async () => {
      const order = JSON.parse(line)
      if (worker === null) worker = new Worker(order)
      else socket.write(`${JSON.stringify(await answer(worker, order))}\n`)
    })
  })
  socket.on('end', () => process.exit(0))
})
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })))
