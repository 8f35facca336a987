// A js-libp2p server of the DHT, connected to one peer. Prints a line of JSON whenever its table has it, or has it no more.
//
//   node serving.mjs NETWORK ADDRESS     until killed

import { multiaddr } from '@multiformats/multiaddr'
import { startHost } from './dht.mjs'

const [network, at] = process.argv.slice(2)
const host = await startHost({ network, listen: ['/ip4/127.0.0.1/tcp/0'], serve: true })
const { remotePeer } = await host.dial(multiaddr(at))
let said
while (true) {
  const knows = (await host.services.dht.routingTable.find(remotePeer)) !== undefined
  if (knows !== said) console.log(JSON.stringify({ knows }))
  said = knows
  await new Promise(resolve => setTimeout(resolve, 20))
}
