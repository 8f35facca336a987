// What must not be lost: the client's side of the chain, as a bundle (record.md, section 5). Each record is on disk
// before a message leaves that depends on it (session.md, rule 1.3).

import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { SecretKey } from './keys.mjs'
import { UsageError } from './refused.mjs'

export class Book {
  #file; #folder

  /** A new client's folder: a key, and an empty bundle. */
  constructor (folder) {
    Book.refuseOld(folder)
    this.#folder = folder
    this.path = bundleIn(folder)
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const seed = randomBytes(32)
    append(join(folder, 'key'), `${seed.toString('hex')}\n`, 0o600)
    this.secret = new SecretKey(seed)
    this.#file = openSync(this.path, 'ax', 0o600)
    sync(folder)
  }

  /** A folder in which a client has signed something is left alone: this program cannot go on with it. */
  static refuseOld (folder) {
    if (existsSync(bundleIn(folder))) throw new UsageError(`${bundleIn(folder)} exists: name another folder (--out)`)
  }

  /** Durable when it returns. */
  write (records) {
    if (records.length === 0) return
    writeSync(this.#file, records.map((record) => `${record.toLine()}\n`).join(''))
    fsyncSync(this.#file)
  }

  /** What a peer signed and broke a rule with. */
  keepEvidence (record) {
    append(join(this.#folder, 'evidence.jsonl'), `${record.toLine()}\n`, 0o600)
  }

  close () { closeSync(this.#file) }
}

const bundleIn = (folder) => join(folder, 'client.jsonl') // `client` in its name says whose it is (audit.md, rule 7)

function append (path, text, mode) {
  const file = openSync(path, 'a', mode)
  writeSync(file, text)
  fsyncSync(file)
  closeSync(file)
}

function sync (folder) {
  const opened = openSync(folder, 'r')
  fsyncSync(opened)
  closeSync(opened)
}
