// js-libp2p 3 uses Promise.withResolvers, which Node 22 brought, and so do we. Import this before anything of libp2p.

Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((_resolve, _reject) => { resolve = _resolve; reject = _reject })
  return { promise, resolve, reject }
}
