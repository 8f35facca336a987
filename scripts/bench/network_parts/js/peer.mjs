// Peers in js-libp2p that the clients meet. Each prints one line of JSON when it is ready, and goes on until killed.
//
//   node peer.mjs relay           relay for others
//   node peer.mjs source RELAY    be reached through the relay, and send as much as is asked for: source.py in js-libp2p

import './polyfill.mjs'
import { createLibp2p } from 'libp2p'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'

const SOURCE = '/http/1.1'
const PIECE = new Uint8Array(32 * 1024)

const [what, relay] = process.argv.slice(2)
const node = await createLibp2p({
  addresses: { listen: what === 'relay' ? ['/ip4/127.0.0.1/tcp/0'] : [`${relay}/p2p-circuit`] },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ...(what === 'relay' ? { relay: circuitRelayServer({ reservations: { applyDefaultLimit: false } }) } : {})
  }
})
if (what === 'source') {
  await node.handle(SOURCE, (stream) => { send(stream).catch((error) => stream.abort(error)) }, { runOnLimitedConnection: true })
}

/** A number of 8 bytes comes; that many go. */
async function send (stream) {
  let asked = Buffer.alloc(0)
  for await (const data of stream) {
    asked = Buffer.concat([asked, data.subarray()])
    if (asked.length >= 8) break
  }
  for (let left = Number(asked.readBigUInt64BE()); left > 0; left -= PIECE.length) {
    if (!stream.send(PIECE.subarray(0, left))) await stream.onDrain()
  }
}

const wanted = what === 'relay' ? '/tcp/' : '/p2p-circuit/'
const timer = setInterval(() => {
  const address = node.getMultiaddrs().map(String).find((one) => one.includes(wanted))
  if (address === undefined) return
  clearInterval(timer)
  console.log(JSON.stringify({ peer: node.peerId.toString(), address }))
  setInterval(() => {}, 1000)
}, 50)
