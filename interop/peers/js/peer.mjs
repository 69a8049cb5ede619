// js-libp2p behind this repository's interoperability contract; see interop/testplan/src/lib.rs.

import { quic } from '@chainsafe/libp2p-quic'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const ECHO = '/interop/echo/1.0.0'
const HALF_CLOSE = '/interop/half-close/1.0.0'
const RESET = '/interop/reset/1.0.0'
const CLOSE = '/interop/close/1.0.0'
const PING = '/ipfs/ping/1.0.0'

const LARGE = 1 << 20
const SMALL = 64 << 10
const STREAMS = 16
const IDLE = 16_000
const NOTICE = 5_000
const TIMEOUT = 30_000
const KEYS = { ed25519: 'Ed25519', secp256k1: 'secp256k1', ecdsa: 'ECDSA', rsa: 'RSA' }

const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }))
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const bytes = (chunk) => (chunk.subarray ? chunk.subarray() : chunk)

async function within (ms, what, promise) {
  let timer
  const late = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} within ${ms} ms`)), ms)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

async function until (ms, what, condition) {
  const end = Date.now() + ms
  while (!condition()) {
    if (Date.now() > end) throw new Error(what)
    await sleep(20)
  }
}

// Sends, and waits where the stream says that it has enough.
async function send (stream, data) {
  for (let at = 0; at < data.length; at += SMALL) {
    if (!stream.send(data.subarray(at, at + SMALL))) await stream.onDrain()
  }
}

async function start (key, listen) {
  const node = await createLibp2p({
    privateKey: await generateKeyPair(KEYS[key]),
    addresses: { listen },
    transports: [quic()],
    services: { identify: identify(), ping: ping() },
    connectionMonitor: { enabled: false }
  })
  await node.handle(ECHO, guarded(async (stream) => {
    for await (const chunk of stream) await send(stream, bytes(chunk).slice())
    await stream.close()
  }))
  await node.handle(HALF_CLOSE, guarded(async (stream) => {
    let count = 0n
    for await (const chunk of stream) count += BigInt(chunk.byteLength)
    const answer = new Uint8Array(8)
    new DataView(answer.buffer).setBigUint64(0, count)
    await send(stream, answer)
    await stream.close()
  }))
  await node.handle(RESET, guarded(async (stream) => {
    await first(stream)
    stream.abort(new Error('as asked'))
  }))
  await node.handle(CLOSE, guarded(async (stream, connection) => {
    await first(stream)
    await connection.close()
  }))
  return node
}

const guarded = (handler) => async (stream, connection) => {
  try {
    await handler(stream, connection)
  } catch (error) {
    console.error(`a stream ended early: ${error.message}`)
  }
}

async function first (stream) {
  for await (const chunk of stream) if (chunk.byteLength > 0) return chunk
  throw new Error('ended before its first byte')
}

async function exchange (stream, length) {
  const sent = Uint8Array.from({ length }, (_unused, i) => i ^ (i >> 8))
  const writing = send(stream, sent)
  const received = new Uint8Array(length)
  let count = 0
  for await (const chunk of stream) {
    received.set(bytes(chunk), count)
    count += chunk.byteLength
    if (count >= length) break
  }
  await writing
  if (!received.every((byte, i) => byte === sent[i])) throw new Error('other bytes came back')
  await stream.close()
}

const features = {
  async ping (node, connection) {
    return `${await node.services.ping.ping(connection.remotePeer)} ms`
  },
  async identify (node, connection) {
    let protocols = []
    const end = Date.now() + NOTICE
    while (!protocols.includes(PING)) {
      if (Date.now() > end) throw new Error('identify told nothing')
      protocols = (await node.peerStore.get(connection.remotePeer)).protocols
      await sleep(20)
    }
    return 'ping is among its protocols'
  },
  async echo (_node, connection) {
    const begin = Date.now()
    await exchange(await connection.newStream(ECHO), LARGE)
    return `${Date.now() - begin} ms`
  },
  async streams (_node, connection) {
    const streams = []
    for (let i = 0; i < STREAMS; i++) streams.push(await connection.newStream(ECHO, { maxOutboundStreams: STREAMS }))
    await Promise.all(streams.map((stream) => exchange(stream, SMALL)))
    return `${STREAMS} streams`
  },
  async 'half-close' (_node, connection) {
    const stream = await connection.newStream(HALF_CLOSE)
    const reading = all(stream)
    await send(stream, new Uint8Array(SMALL))
    await stream.close()
    const answer = await reading
    const count = new DataView(Uint8Array.from(answer).buffer).getBigUint64(0)
    if (count !== BigInt(SMALL)) throw new Error(`the answer is ${count}`)
    return 'all was read, then answered'
  },
  async reset (_node, connection) {
    const stream = await connection.newStream(RESET)
    const ending = ended(stream)
    await send(stream, new Uint8Array(1))
    const noticed = await within(NOTICE, 'the reset went unnoticed', ending)
    const ours = await connection.newStream(ECHO)
    await send(ours, new Uint8Array(SMALL))
    ours.abort(new Error('as asked'))
    await exchange(await connection.newStream(ECHO), SMALL)
    return noticed
  },
  async 'keep-alive' (node, connection) {
    await sleep(IDLE)
    if (connection.status !== 'open') throw new Error('the connection was closed')
    return await features.ping(node, connection)
  },
  async 'close-by-dialer' (_node, connection) {
    await connection.close()
    return await gone(connection)
  },
  async 'close-by-listener' (_node, connection) {
    const stream = await connection.newStream(CLOSE)
    // The connection may be closed before sending is done.
    await send(stream, new Uint8Array(1)).catch((error) => console.error(`while sending: ${error.message}`))
    return await gone(connection)
  }
}

// An iteration over a stream never ends if the remote's half ended before it began: begin before you send.
async function all (stream) {
  const received = []
  for await (const chunk of stream) received.push(...bytes(chunk))
  return received
}

async function ended (stream) {
  try {
    for await (const chunk of stream) if (chunk.byteLength > 0) throw new RangeError('a byte came back')
    return 'reading ended'
  } catch (error) {
    if (error instanceof RangeError) throw error
    return `reading failed: ${error.name}`
  }
}

async function gone (connection) {
  const begin = Date.now()
  await until(NOTICE, 'the connection is still there', () => connection.status === 'closed')
  return `after ${Date.now() - begin} ms`
}

async function listen (options) {
  const node = await start(options.key, [options.address])
  node.addEventListener('peer:connect', (event) => say('connected', { peer: event.detail.toString() }))
  node.addEventListener('peer:disconnect', (event) => say('closed', { peer: event.detail.toString() }))
  say('listening', { address: node.getMultiaddrs()[0].toString() })
  atEndOfInput(() => node.stop().finally(() => process.exit(0)))
}

// Standard input ends when whoever started us wants us to stop.
function atEndOfInput (done) {
  process.stdin.on('end', done)
  process.stdin.resume()
}

async function dial (options, [address, ...wanted]) {
  const node = await start(options.key, [])
  const connection = await within(15_000, 'no connection', node.dial(multiaddr(address)))
  say('connected', { peer: connection.remotePeer.toString() })
  for (const feature of wanted) {
    try {
      const detail = await within(TIMEOUT, 'not done', features[feature](node, connection))
      say('feature', { feature, ok: true, detail })
    } catch (error) {
      say('feature', { feature, ok: false, detail: `${error.name}: ${error.message}` })
    }
  }
  await node.stop()
  process.exit(0)
}

const [command, ...rest] = process.argv.slice(2)
const options = { key: 'ed25519', address: '/ip4/127.0.0.1/udp/0/quic-v1' }
const words = []
while (rest.length > 0) {
  const word = rest.shift()
  if (word.startsWith('--')) options[word.slice(2)] = rest.shift()
  else words.push(word)
}
await (command === 'listen' ? listen(options) : dial(options, words))
