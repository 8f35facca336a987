// Loaded before the example (`node --import`): its vouchers say a pico-unit less than the meter that they name.

import { Record } from './record.mjs'

const sign = Record.sign
Record.sign = (name, fields, ...who) =>
  sign(name, name === 'Voucher' ? { ...fields, amount_pico: fields.amount_pico - 1n } : fields, ...who)
