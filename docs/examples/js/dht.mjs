// discovery.md: a libp2p host on one network, look-ups in its DHT, and what a provider itself says it offers.

import './polyfill.mjs' // before libp2p
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify, identifyPush } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'
import { keyOf } from './keys.mjs'
import { same, sha256 } from './messages.mjs'
import { Record } from './record.mjs'
import { Refused, Unavailable, UsageError } from './refused.mjs'

export const OFFER_PROTOCOL = '/p2pgrid/offer/1'
const MOST_OFFER = 65536
const EXCHANGE_MS = 10_000
const CLOCKS_MS = 120_000
const HOUR_MS = 3_600_000
const NETWORK = /^(?=.{1,32}$)[a-z0-9]+(-[a-z0-9]+)*$/

/**
 * A started host. Noise and yamux over TCP alone (rule 1), under a key of its own: who the client is says PROOF
 * (link.md, rule 16). It asks the DHT, or answers as well where `serve` is true: then it should `listen` where others
 * reach it, for its address enters their routing tables. With `circuitRelayTransport()` (of @libp2p/circuit-relay-v2)
 * among the `transports` it reaches providers through relays too (relay.md).
 */
export async function startHost ({ network, listen = [], serve = false, transports = [tcp()] }) {
  if (!NETWORK.test(network)) throw new UsageError(`${network} is no name of a network`)
  return createLibp2p({
    privateKey: await generateKeyPair('Ed25519'), // rule 2
    addresses: { listen },
    transports,
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: {
      identify: identify(),
      identifyPush: identifyPush(), // rule 7c1
      ping: ping({ maxOutboundStreams: 8 }), // the DHT pings whom it is to know, and one at a time is the default
      dht: kadDHT({
        protocol: `/p2pgrid/${network}/kad/1.0.0`, // rule 4
        clientMode: !serve, // rule 5
        peerInfoMapper: passthroughMapper, // networks on one machine, or in a LAN, work too
        reprovide: { validity: HOUR_MS, interval: HOUR_MS / 12 }, // rule 6
        validators: { pk: noValues },
        initialQuerySelfInterval: 100
      })
    }
  })
}

function noValues () {
  throw new Refused('no-values', 'servers of this network keep provider records alone')
}

/** Rule 8: where `key` is in the DHT of `network`. */
export function dhtKey (network, key) {
  return Buffer.concat([Uint8Array.of(0x12, 0x20), sha256(Buffer.from(`${network}\0${key}`))])
}

/** Peers that are said to provide `key`: hints, each once (rule 7). Ends with the look-up, or after `limitMs`. */
export async function * findPeers (host, network, key, limitMs = 20_000) {
  const seen = new Set()
  const cid = CID.createV1(raw.code, Digest.decode(dhtKey(network, key))) // js-libp2p asks for a CID's multihash
  const signal = AbortSignal.timeout(limitMs)
  try {
    for await (const peer of host.contentRouting.findProviders(cid, { signal })) {
      if (!seen.has(peer.id.toString())) yield peer
      seen.add(peer.id.toString())
    }
  } catch (error) {
    if (!signal.aborted) throw error
  }
}

/** Get to know the servers closest to this host, which is what its answers to others are made of. */
export async function meetNeighbours (host, limitMs = 20_000) {
  const own = host.peerId.toMultihash().bytes
  const signal = AbortSignal.timeout(limitMs)
  try {
    // The peers that it yields are in the routing table by then: nothing is left to do with them.
    for await (const _peer of host.peerRouting.getClosestPeers(own, { signal }));
  } catch (error) {
    if (!signal.aborted) throw error
  }
}

/** What `peer` offers now, as `{ record, fields }`; null if nothing (rules 9 and 11). */
export async function askForOffer (host, peer, nowMs) {
  const bytes = await readWhole(host, peer, OFFER_PROTOCOL)
  return bytes.length === 0 ? null : readOffer(Record.fromWire(bytes), keyOf(peer.toString()), nowMs)
}

/** Rule 11: an offer that verifies, is of the provider asked, and in force. */
export function readOffer (record, provider, nowMs) {
  const fields = record.read('Offer', { provider })
  if (!same(fields.provider, provider)) throw new Refused('wrong-key', 'an offer of another provider')
  const isInForce = fields.valid_from_ms <= nowMs + CLOCKS_MS && nowMs < fields.valid_until_ms
  if (!isInForce) throw new Refused('not-in-force', 'the offer')
  return { record, fields }
}

/** Open a stream, send nothing, read a length and that many bytes (rule 9). */
async function readWhole (host, peer, protocol) {
  const signal = AbortSignal.timeout(EXCHANGE_MS)
  const stream = await host.dialProtocol(peer, protocol, { signal, runOnLimitedConnection: true }) // through a relay, too
  const abort = () => stream.abort(new Unavailable('timeout', `no answer on ${protocol} in 10 s`))
  signal.addEventListener('abort', abort)
  try {
    let bytes = Buffer.alloc(0)
    for await (const piece of stream) {
      bytes = Buffer.concat([bytes, piece.subarray()])
      const wanted = bytes.length < 4 ? 4 : 4 + bytes.readUInt32BE(0)
      if (wanted > 4 + MOST_OFFER || bytes.length > wanted) throw new Refused('oversize', `the answer on ${protocol}`)
      if (bytes.length >= 4 && bytes.length === wanted) return new Uint8Array(bytes.subarray(4))
    }
    throw new Refused('malformed', `the answer on ${protocol} is cut off`)
  } finally {
    signal.removeEventListener('abort', abort)
    stream.close().catch(() => {})
  }
}
