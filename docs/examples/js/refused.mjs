// What can go wrong, by what follows from it.

/** What a peer sent breaks a rule of docs/spec. `code` is the spec's word for it. */
export class Refused extends Error {
  constructor (code, message = '') {
    super(message === '' ? code : `${code}: ${message}`)
    this.name = 'Refused'
    this.code = code
  }
}

/** It is not to be had, here or now: nobody sells it, the provider said no, the link was lost. No rule was broken. */
export class Unavailable extends Error {
  constructor (code, message = '') {
    super(message === '' ? code : `${code}: ${message}`)
    this.name = 'Unavailable'
    this.code = code
  }
}

/** What was asked of this program makes no sense. */
export class UsageError extends Error {}
