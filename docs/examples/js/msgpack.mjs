// The MessagePack of messages.md, section 1: arrays, text, bytes, integers, true and false, each in its shortest form.
// No maps, no floats, no nil. Integers are read as BigInt, for they go beyond 2^53.

import { Refused } from './refused.mjs'

const DEEPEST = 16 // an Offer nests 6 deep
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** The bytes of one value. Numbers must be integers; BigInt is taken as well. */
export function encode (value) {
  const parts = []
  write(value, parts)
  return new Uint8Array(Buffer.concat(parts))
}

/** The one value that `bytes` are; `malformed` if they are anything else. Longer forms are read: see `isCanonical`. */
export function decode (bytes) {
  const reader = { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), at: 0 }
  let value
  try {
    value = read(reader, 0)
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof TypeError)) throw error
    throw new Refused('malformed', 'cut off, or no UTF-8')
  }
  if (reader.at !== bytes.length) throw new Refused('malformed', 'trailing bytes')
  return value
}

/** Would we have written `value`, which was read from `bytes`, the same way? */
export function isCanonical (value, bytes) {
  return Buffer.compare(encode(value), bytes) === 0
}

function write (value, parts) {
  if (value === true || value === false) {
    parts.push(Uint8Array.of(value ? 0xc3 : 0xc2))
  } else if (typeof value === 'number' || typeof value === 'bigint') {
    parts.push(integer(BigInt(value)))
  } else if (typeof value === 'string') {
    const bytes = Buffer.from(value, 'utf-8')
    parts.push(head(bytes.length, [0xa0, 32], [0xd9, 0xda, 0xdb]), bytes)
  } else if (value instanceof Uint8Array) {
    parts.push(head(value.length, [0, 0], [0xc4, 0xc5, 0xc6]), value)
  } else if (Array.isArray(value)) {
    parts.push(head(value.length, [0x90, 16], [null, 0xdc, 0xdd]))
    for (const each of value) write(each, parts)
  } else {
    throw new TypeError(`no such value in a message: ${value}`)
  }
}

/** The header of something `length` long: in the tag itself below `fix[1]`, else with 1, 2 or 4 bytes of length. */
function head (length, fix, tags) {
  if (length < fix[1]) return Uint8Array.of(fix[0] | length)
  if (length < 0x100 && tags[0] !== null) return Uint8Array.of(tags[0], length)
  const bytes = Buffer.alloc(length < 0x10000 ? 3 : 5)
  bytes[0] = length < 0x10000 ? tags[1] : tags[2]
  bytes.writeUIntBE(length, 1, bytes.length - 1)
  return bytes
}

function integer (value) {
  if (value >= 0n) {
    if (value < 0x80n) return Uint8Array.of(Number(value))
    for (const [tag, size] of [[0xcc, 1], [0xcd, 2], [0xce, 4], [0xcf, 8]]) {
      if (value < 1n << BigInt(8 * size)) return sized(tag, size, value)
    }
  } else {
    if (value >= -32n) return Uint8Array.of(Number(value & 0xffn))
    for (const [tag, size] of [[0xd0, 1], [0xd1, 2], [0xd2, 4], [0xd3, 8]]) {
      if (value >= -(1n << BigInt(8 * size - 1))) return sized(tag, size, value)
    }
  }
  throw new RangeError(`more than 64 bits: ${value}`)
}

function sized (tag, size, value) {
  const bytes = Buffer.alloc(1 + size)
  bytes[0] = tag
  for (let n = size; n > 0; n--, value >>= 8n) bytes[n] = Number(value & 0xffn)
  return bytes
}

function read (reader, depth) {
  if (depth > DEEPEST) throw new Refused('malformed', 'nested too deeply')
  const tag = take(reader, 1)
  if (tag < 0x80) return BigInt(tag)
  if (tag >= 0xe0) return BigInt(tag - 0x100)
  if (tag >= 0xa0 && tag < 0xc0) return text(reader, tag & 0x1f)
  if (tag >= 0x90 && tag < 0xa0) return array(reader, tag & 0x0f, depth)
  switch (tag) {
    case 0xc2: return false
    case 0xc3: return true
    case 0xc4: return slice(reader, take(reader, 1))
    case 0xc5: return slice(reader, take(reader, 2))
    case 0xc6: return slice(reader, take(reader, 4))
    case 0xcc: return BigInt(take(reader, 1))
    case 0xcd: return BigInt(take(reader, 2))
    case 0xce: return BigInt(take(reader, 4))
    case 0xcf: return long(reader, 8)
    case 0xd0: return BigInt.asIntN(8, long(reader, 1))
    case 0xd1: return BigInt.asIntN(16, long(reader, 2))
    case 0xd2: return BigInt.asIntN(32, long(reader, 4))
    case 0xd3: return BigInt.asIntN(64, long(reader, 8))
    case 0xd9: return text(reader, take(reader, 1))
    case 0xda: return text(reader, take(reader, 2))
    case 0xdb: return text(reader, take(reader, 4))
    case 0xdc: return array(reader, take(reader, 2), depth)
    case 0xdd: return array(reader, take(reader, 4), depth)
    default: throw new Refused('malformed', `a value of a kind that messages do not have (0x${tag.toString(16)})`)
  }
}

function take (reader, size) {
  const value = size === 1
    ? reader.view.getUint8(reader.at)
    : size === 2 ? reader.view.getUint16(reader.at) : reader.view.getUint32(reader.at)
  reader.at += size
  return value
}

function long (reader, size) {
  let value = 0n
  for (let n = 0; n < size; n++) value = value << 8n | BigInt(take(reader, 1))
  return value
}

function slice (reader, length) {
  if (reader.at + length > reader.bytes.length) throw new Refused('malformed', 'cut off')
  reader.at += length
  return reader.bytes.subarray(reader.at - length, reader.at)
}

function text (reader, length) {
  return utf8.decode(slice(reader, length))
}

function array (reader, length, depth) {
  const values = []
  for (let n = 0; n < length; n++) values.push(read(reader, depth + 1))
  return values
}
