// What must not be lost: the client's side of the chain, as a bundle (record.md, section 5). Each record is on disk before
// a message leaves that depends on it (session.md, rule 1.3).

import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { SecretKey } from './keys.mjs'
import { UsageError } from './refused.mjs'

export class Book {
  #file; #folder

  /** A new client's folder: a key, and an empty bundle. A folder that has one is left alone. */
  constructor (folder) {
    this.#folder = folder
    this.path = join(folder, 'client.jsonl')
    if (existsSync(this.path)) {
      throw new UsageError(`${this.path} exists, and this program cannot go on with it: name another folder (--out)`)
    }
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    this.seed = randomBytes(32)
    append(join(folder, 'key'), `${this.seed.toString('hex')}\n`, 0o600)
    this.secret = new SecretKey(this.seed)
    this.#file = openSync(this.path, 'a', 0o600)
    sync(folder)
  }

  /** Durable when it returns. */
  write (records) {
    if (records.length === 0) return
    writeSync(this.#file, records.map((record) => `${record.toLine()}\n`).join(''))
    fsyncSync(this.#file)
  }

  /** What a peer signed and broke a rule with; its path. */
  keepEvidence (record) {
    const path = join(this.#folder, 'evidence.jsonl')
    append(path, `${record.toLine()}\n`, 0o600)
    return path
  }

  close () { closeSync(this.#file) }
}

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
