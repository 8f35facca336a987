// Buys one answer on a p2pgrid network, or serves its DHT: `node main.mjs --help`.

import './polyfill.mjs'
import { parseArgs } from 'node:util'
import { multiaddr } from '@multiformats/multiaddr'
import { Book } from './book.mjs'
import { askForOffer, findPeers, meetNeighbours, startHost } from './dht.mjs'
import { dialLink } from './link.mjs'
import { buy, openChannel } from './session.mjs'
import { Refused, Unavailable, UsageError } from './refused.mjs'

const HELP = `Buy one answer on a p2pgrid network, with signed order, vouchers and receipt.

usage: node main.mjs buy --peer ADDRESS --model NAME [options] PROMPT
       node main.mjs serve-dht --listen ADDRESS [options]

  buy          look up who sells the model, buy from the cheapest, print the answer as it comes
  serve-dht    be a peer through which others find one another, until Ctrl-C

  --peer ADDRESS      a peer to join through: /ip4/192.0.2.7/tcp/4801/p2p/12D3KooW...; may be repeated.
                      The first peer of a network joins through none
  --network NAME      the network (main)
  --model NAME        what to buy
  --country CC        only from providers in this country
  --max-tokens N      the answer's longest length (128)
  --request JSON      more fields of the request, as {"temperature": 0}
  --out FOLDER        where this client's key and its side of the chain are put (a new folder p2pgrid-client-...)
  --listen ADDRESS    serve-dht: where to be reached, as /ip4/0.0.0.0/tcp/4811
  --json              print one JSON object instead of text
  --help              this

exit codes: 0 bought, and both have signed the receipt; 1 not to be had, or refused; 2 wrong usage;
            3 the provider broke a rule: what it signed is in FOLDER, for an audit
`
const OPTIONS = {
  peer: { type: 'string', multiple: true, default: [] },
  network: { type: 'string', default: 'main' },
  model: { type: 'string' },
  country: { type: 'string' },
  'max-tokens': { type: 'string', default: '128' },
  request: { type: 'string', default: '{}' },
  out: { type: 'string' },
  listen: { type: 'string', multiple: true, default: [] },
  json: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false }
}
const NOT_TO_BE_HAD = 1
const USAGE = 2
const BROKE_A_RULE = 3

async function main (args) {
  const { values: options, positionals } = parseArgs({ args, options: OPTIONS, allowPositionals: true })
  const [command, ...rest] = positionals
  if (options.help || command === undefined) {
    process.stdout.write(HELP)
    return command === undefined && !options.help ? USAGE : 0
  }
  options.peers = options.peer.map(address)
  if (command === 'buy') return buyOne(options, rest.join(' '))
  if (command === 'serve-dht') return serveDht(options)
  throw new UsageError(`no command ${command}`)
}

async function buyOne (options, prompt) {
  const maxTokens = Number(options['max-tokens'])
  if (options.peers.length === 0) throw new UsageError('name a peer to join through (--peer)')
  if (options.model === undefined || prompt === '') throw new UsageError('name a model (--model) and say something')
  if (!(Number.isInteger(maxTokens) && maxTokens >= 1 && maxTokens <= 1_000_000)) {
    throw new UsageError('--max-tokens goes from 1 to 1000000')
  }
  const request = fields(options.request)
  const { network, model } = options
  const say = (words) => options.json || process.stderr.write(`${printable(words)}\n`)
  const folder = options.out ?? `p2pgrid-client-${new Date().toISOString().replaceAll(/[:.]/g, '-')}`
  Book.refuseOld(folder)
  const host = await startHost({ network })
  try {
    const pingMs = await join(host, options.peers)
    say(`joined ${network} through a peer that answered in ${pingMs} ms`)

    const offers = await offersOf(host, options, say)
    if (offers.length === 0) throw new Unavailable('not-to-be-had', `nobody offers ${model} on ${network}`)
    offers.sort((a, b) => Number(outputPrice(a, model) - outputPrice(b, model)))
    say(`${offers.length} offer(s); buying from ${offers[0].fields.operator} (${offers[0].peer})`)

    return await buyUnder(host, offers, folder, { options, request, model, prompt, maxTokens, pingMs, say })
  } finally {
    await host.stop()
  }
}

async function buyUnder (host, offers, folder, { options, request, model, prompt, maxTokens, pingMs, say }) {
  const [offer] = offers
  const book = new Book(folder)
  try {
    const link = await dialLink(host, offer.peer, book.secret, offer.fields.provider, AbortSignal.timeout(15_000))
    const channel = await openChannel(link, book.secret, offer, book)
    let text = ''
    const buyer = await buy(link, { secret: book.secret, offer, channel, book }, {
      request: { ...request, model, messages: [{ role: 'user', content: prompt }] },
      endpoint: '/v1/chat/completions',
      maxTokens,
      onText: (piece) => {
        text += piece
        if (!options.json) process.stdout.write(process.stdout.isTTY ? printable(piece) : piece)
      }
    })
    link.finish()
    if (!options.json) process.stdout.write('\n')
    return report(buyer, { options, say, book, offer, pingMs, offers, text })
  } catch (error) {
    say(`what was signed is in ${book.path}`)
    throw error
  } finally {
    book.close()
  }
}

/** Dial who is named, until one answers a ping; how long that took, in ms. */
async function join (host, peers) {
  const reasons = []
  for (const peer of peers) {
    try {
      await host.dial(peer, { signal: AbortSignal.timeout(10_000) })
      return await host.services.ping.ping(peer, { signal: AbortSignal.timeout(10_000) })
    } catch (error) {
      reasons.push(`${peer}: ${error.message}`)
    }
  }
  throw new Unavailable('not-joined', `no peer answered. ${reasons.join('; ')}`)
}

/** The offers that peers show themselves: what the DHT says of them is a hint. */
async function offersOf (host, { network, model, country }, say) {
  const key = `model/${model}${country === undefined ? '' : `@${country}`}`
  const asked = []
  const ask = async (peer) => {
    try {
      const offer = await askForOffer(host, peer, Date.now())
      const entry = offer?.fields.models.find((each) => each.model === model)
      const isThere = country === undefined || offer?.fields.data_terms.country === country
      return isThere && entry?.endpoints.includes('/v1/chat/completions') ? [{ ...offer, peer }] : []
    } catch (error) { // it may be gone, or lie
      say(`passed over ${peer}: ${error.message}`)
      return []
    }
  }
  for await (const peer of findPeers(host, network, key)) asked.push(ask(peer.id))
  return (await Promise.all(asked)).flat()
}

const outputPrice = (offer, model) => offer.fields.models.find((each) => each.model === model).tariff.output_upm

function report (buyer, { options, say, book, offer, pingMs, offers, text }) {
  const { state, refusal, ticks } = buyer
  const receipt = buyer.receipt?.fields
  const billed = receipt && {
    id: Buffer.from(buyer.receipt.record.id).toString('hex'),
    status: receipt.status,
    ...receipt.usage,
    amount_pico: String(receipt.amount_pico)
  }
  if (options.json) {
    console.log(JSON.stringify({
      state,
      client: book.secret.peerId,
      provider: offer.peer.toString(),
      operator: offer.fields.operator,
      offers: offers.map((each) => each.peer.toString()),
      ping_ms: pingMs,
      text,
      refusal,
      vouchers: ticks,
      receipt: billed ?? null,
      bundle: book.path
    }))
  } else if (receipt !== undefined) {
    const counts = `${billed.prompt_tokens} tokens in, ${billed.output_tokens} out`
    const money = `${(Number(receipt.amount_pico) / 1e12).toFixed(9)} ${offer.fields.currency}`
    say(`${state}: ${receipt.status}, ${counts}, ${money}, ${ticks} vouchers`)
    say(`your side of the chain: ${book.path} (p2pgrid audit reads it)`)
  }
  if (state === 'REFUSED') say(`refused: ${refusal.code}: ${refusal.message}`)
  if (state === 'DISPUTED') return BROKE_A_RULE
  return state === 'SETTLED' && receipt.status === 'completed' ? 0 : NOT_TO_BE_HAD
}

async function serveDht (options) {
  const { network, listen } = options
  if (listen.length === 0) throw new UsageError('say where to be reached (--listen)')
  listen.forEach(address)
  const host = await startHost({ network, listen, serve: true })
  try {
    if (options.peers.length > 0) {
      await join(host, options.peers)
      await meetNeighbours(host)
    }
    const addresses = host.getMultiaddrs().map(String)
    const ready = { ready: true, peer_id: host.peerId.toString(), addresses }
    console.log(options.json ? JSON.stringify(ready) : addresses.join('\n'))
    await new Promise((resolve) => ['SIGINT', 'SIGTERM'].forEach((signal) => process.once(signal, resolve)))
    return 0
  } finally {
    await host.stop()
  }
}

/** What strangers wrote, for a terminal: without control characters. */
function printable (text) {
  return text.replace(/[^\P{C}\n\t]/gu, '\ufffd')
}

function fields (json) {
  try {
    const value = JSON.parse(json)
    if (value !== null && typeof value === 'object' && !Array.isArray(value)) return value
  } catch {}
  throw new UsageError(`--request is no JSON object: ${json}`)
}

function address (text) {
  try {
    return multiaddr(text)
  } catch (error) {
    throw new UsageError(`${text} is no address: ${error.message}`)
  }
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  const isUsage = error instanceof UsageError || error.code?.startsWith('ERR_PARSE_ARGS')
  console.error(`error: ${printable(error.message)}`)
  if (isUsage) console.error('`node main.mjs --help` says what there is.')
  process.exitCode = isUsage ? USAGE : error instanceof Refused ? BROKE_A_RULE : NOT_TO_BE_HAD
}
