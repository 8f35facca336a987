// record.md: a payload, what signs it, and its two forms: bytes on the wire, a line in a bundle.

import { fits } from './keys.mjs'
import { MESSAGES, checkChannelKeys, readMessage, same, sha256, writeMessage } from './messages.mjs'
import { decode, encode, isCanonical } from './msgpack.mjs'
import { Refused } from './refused.mjs'

const MOST_BYTES = 131072
const MOST_LINE_BYTES = 262144
const ROLES = ['provider', 'client', 'operator']
const ATTACHMENTS = ['/p2pgrid/checkpoint/1', '/p2pgrid/inclusion-proof/1']

/** Rule 3. `domain` is `p2pgrid` for all that this protocol signs. */
export function signatureInput (type, payload, domain = 'p2pgrid') {
  return Buffer.concat([Buffer.from(domain), Buffer.from(type), payload].flatMap((part) => [varint(part.length), part]))
}

function varint (value) {
  const bytes = []
  for (; value > 0x7f; value >>>= 7) bytes.push(value & 0x7f | 0x80)
  return Uint8Array.of(...bytes, value)
}

export class Record {
  constructor (type, payload, signatures) {
    this.type = type
    this.payload = payload
    this.signatures = signatures // [{ role, key, signature }]
  }

  get input () { return signatureInput(this.type, this.payload) }
  get id () { return sha256(this.input) } // rule 4

  /** A new message, signed. */
  static sign (name, fields, role, secret) {
    return new Record(MESSAGES[name].type, writeMessage(name, fields), []).countersign(role, secret)
  }

  /** The same record with one signature more: neither payload nor id change (rule 2). */
  countersign (role, secret) {
    const signature = { role, key: secret.key, signature: secret.sign(this.input) }
    return new Record(this.type, this.payload, [...this.signatures, signature])
  }

  /**
   * The message's fields, if it is a `name` and signed by `keys`, an object of role and key: rules 13 to 15.
   * Signatures come first: nothing of a payload is read that nobody answers for.
   */
  read (name, keys) {
    this.checkSigned(keys)
    if (this.type !== MESSAGES[name].type) throw new Refused('wrong-type', `${this.type}, expected ${name}`)
    const fields = readMessage(name, this.payload)
    if (name === 'Channel') checkChannelKeys(fields)
    return fields
  }

  /** Rule 14. Signatures in other roles prove nothing, and are passed over. */
  checkSigned (keys) {
    for (const [role, key] of Object.entries(keys)) {
      const signature = this.signatures.find((each) => each.role === role)
      if (signature === undefined) throw new Refused('signature-missing', role)
      if (!same(signature.key, key)) throw new Refused('wrong-key', role)
      if (!fits(key, this.input, signature.signature)) throw new Refused('bad-signature', role)
    }
  }

  /** Rule 12. */
  toWire () {
    return encode([this.type, this.payload, this.signatures.map((each) => [each.role, each.key, each.signature])])
  }

  static fromWire (bytes) {
    if (bytes.length > MOST_BYTES) throw new Refused('oversize', `a record of ${bytes.length} bytes`)
    const value = decode(bytes)
    if (!Array.isArray(value) || value.length !== 3 || !Array.isArray(value[2])) throw new Refused('malformed')
    const signatures = value[2].map((each) => {
      if (!Array.isArray(each) || each.length !== 3) throw new Refused('malformed', 'a signature')
      return { role: each[0], key: each[1], signature: each[2] }
    })
    const record = wellFormed(value[0], value[1], signatures)
    if (!isCanonical(value, bytes)) throw new Refused('not-canonical', 'a record')
    return withOneOfEachRole(record)
  }

  /** Rule 16: a line of a bundle, without its line feed. */
  toLine () {
    const base64 = (bytes) => Buffer.from(bytes).toString('base64')
    return JSON.stringify({
      type: this.type,
      payload: base64(this.payload),
      signatures: this.signatures.map((each) => (
        { role: each.role, key: base64(each.key), signature: base64(each.signature) }
      ))
    })
  }

  static fromLine (bytes) {
    if (bytes.length > MOST_LINE_BYTES) throw new Refused('oversize', `a line of ${bytes.length} bytes`)
    let value
    try {
      value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
    } catch {
      throw new Refused('malformed', 'no JSON in UTF-8')
    }
    expectFields(value, ['type', 'payload', 'signatures'])
    if (!Array.isArray(value.signatures)) throw new Refused('malformed', 'signatures')
    const signatures = value.signatures.map((each) => {
      expectFields(each, ['role', 'key', 'signature'])
      return { role: each.role, key: fromBase64(each.key), signature: fromBase64(each.signature) }
    })
    const payload = fromBase64(value.payload)
    if (payload.length > MOST_BYTES) throw new Refused('oversize', `a payload of ${payload.length} bytes`)
    const record = withOneOfEachRole(wellFormed(value.type, payload, signatures))
    if (ATTACHMENTS.includes(record.type) && signatures.length > 0) {
      throw new Refused('malformed', 'a signed attachment')
    }
    return record
  }
}

function wellFormed (type, payload, signatures) {
  const isWellFormed = typeof type === 'string' && type.isWellFormed() && [...type].length <= 64 &&
    payload instanceof Uint8Array && signatures.length <= 8 &&
    signatures.every(({ role, key, signature }) => ROLES.includes(role) &&
      key instanceof Uint8Array && key.length === 33 && signature instanceof Uint8Array && signature.length === 64)
  if (!isWellFormed) throw new Refused('malformed', 'a record')
  return new Record(type, payload, signatures)
}

function withOneOfEachRole (record) {
  const roles = record.signatures.map((each) => each.role)
  if (new Set(roles).size !== roles.length) throw new Refused('malformed', 'two signatures in one role')
  return record
}

function expectFields (value, names) {
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value)
  if (!isObject || Object.keys(value).sort().join() !== [...names].sort().join()) throw new Refused('malformed')
}

function fromBase64 (text) {
  const bytes = typeof text === 'string' ? Buffer.from(text, 'base64') : null
  if (bytes === null || bytes.toString('base64') !== text) throw new Refused('malformed', 'no canonical base64')
  return new Uint8Array(bytes)
}
