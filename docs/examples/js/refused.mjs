// What a peer sent breaks a rule of docs/spec. `code` is the spec's word for it.

export class Refused extends Error {
  constructor (code, message = '') {
    super(message === '' ? code : `${code}: ${message}`)
    this.name = 'Refused'
    this.code = code
  }
}
