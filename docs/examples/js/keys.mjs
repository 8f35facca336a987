// record.md, section 2: which keys are admitted, what a peer id is, when a signature fits.
// A key is 33 bytes here as everywhere: 1 (Ed25519), then the 32 bytes of RFC 8032.

import { createPrivateKey, createPublicKey, sign as edSign, verify as edVerify } from 'node:crypto'
import { ed25519 } from '@noble/curves/ed25519.js'
import { base58btc } from 'multiformats/bases/base58'
import { Refused } from './refused.mjs'

const PEER_ID_HEAD = Buffer.from('002408011220', 'hex')
const SPKI_HEAD = Buffer.from('302a300506032b6570032100', 'hex') // RFC 8410, a public key
const PKCS8_HEAD = Buffer.from('302e020100300506032b657004220420', 'hex') // RFC 8410, a seed

/** A key pair out of a seed of 32 bytes. */
export class SecretKey {
  #private
  constructor (seed) {
    this.#private = createPrivateKey({ key: Buffer.concat([PKCS8_HEAD, seed]), format: 'der', type: 'pkcs8' })
    this.key = new Uint8Array(Buffer.concat([Uint8Array.of(1), ed25519.getPublicKey(seed)]))
  }

  get peerId () { return peerIdOf(this.key) }
  sign (message) { return new Uint8Array(edSign(null, message, this.#private)) }
}

/** Rule 8: refuse what is no canonical encoding of a point of prime order. Returns the key. */
export function admit (key) {
  if (key.length !== 33 || key[0] !== 1) throw new Refused('key-not-admissible', 'not an Ed25519 key of 33 bytes')
  const point = pointOf(key.subarray(1))
  if (point === null || point.isSmallOrder() || !point.isTorsionFree()) {
    throw new Refused('key-not-admissible', 'no canonical point of prime order')
  }
  return key
}

/** Rule 9: is `signature` over `message` by `key`, which is admitted? */
export function fits (key, message, signature) {
  if (signature.length !== 64) return false
  // OpenSSL sees to S < L, does without the cofactor and compares R byte for byte; it would take an R of small order.
  const r = pointOf(signature.subarray(0, 32))
  if (r === null || r.isSmallOrder()) return false
  const spki = createPublicKey({ key: Buffer.concat([SPKI_HEAD, key.subarray(1)]), format: 'der', type: 'spki' })
  return edVerify(null, message, spki, signature)
}

/** Rule 11: `12D3KooW...` */
export function peerIdOf (key) {
  return base58btc.baseEncode(Buffer.concat([PEER_ID_HEAD, key.subarray(1)]))
}

/** The key that a peer id names; any other text is `key-not-admissible`. */
export function keyOf (peerId) {
  let bytes
  try {
    bytes = base58btc.baseDecode(peerId.slice(0, 64)) // 52 characters long; what is cut is another text, see below
  } catch {
    throw new Refused('key-not-admissible', `no base58: ${peerId}`)
  }
  const head = Buffer.from(bytes.subarray(0, PEER_ID_HEAD.length))
  if (bytes.length !== 38 || !head.equals(PEER_ID_HEAD) || base58btc.baseEncode(bytes) !== peerId) {
    throw new Refused('key-not-admissible', `not the peer id of an Ed25519 key: ${peerId}`)
  }
  return admit(new Uint8Array([1, ...bytes.subarray(6)]))
}

function pointOf (bytes) {
  try {
    return ed25519.Point.fromBytes(bytes, false) // false: RFC 8032's strict decoding
  } catch {
    return null
  }
}
