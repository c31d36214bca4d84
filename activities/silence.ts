/**
 * What is to blame for a call to a sled that brought no answer: the sled and what lies between, or this process, which could
 * not ask. Only the first is silence: what this process lacks says nothing of any sled, and no word about one is believed by it.
 */
import { isIPv6, type LookupFunction } from 'node:net';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';

/** What the other end, or the network, did. Source: connect(2), tcp(7). `EPROTO`: what OpenSSL could not read. */
const OF_THE_NETWORK: ReadonlySet<unknown> = new Set([
  ...['ECONNREFUSED', 'ECONNRESET', 'ECONNABORTED', 'EPIPE', 'ETIMEDOUT', 'EPROTO'],
  ...['EHOSTUNREACH', 'ENETUNREACH', 'EHOSTDOWN', 'ENETRESET', 'ENOTFOUND'],
]);
/** The limits and the findings of the HTTP client, of TLS and of our own check of who is there. Source: undici's and Node's lists of errors. */
const OF_THE_PEER =
  /^(UND_ERR_(CONNECT_TIMEOUT|HEADERS_TIMEOUT|BODY_TIMEOUT|SOCKET|HEADERS_OVERFLOW|RES_.*|RESPONSE.*)|HPE_.*|ERR_SSL_.*|ERR_TLS_.*|ERR_WRONG_PEER|ANSWER_TOO_LONG|.*(CERT|CRL|SIGNATURE|_CA$|PATH_LENGTH|PURPOSE|HOSTNAME).*)$/;
/** What this host may lack for one of the addresses of a name, and have for another. */
const NO_SUCH_FAMILY: ReadonlySet<unknown> = new Set(['EADDRNOTAVAIL', 'EAFNOSUPPORT']);
/** By how much a limit may be overrun before it is this process that was held up, in milliseconds. */
const HELD_UP_MS = 2_000;

const codeOf = (error: unknown): unknown => (error as { readonly code?: unknown } | null)?.code;

/** Whether a limit that a call was given has ended it. */
export function isTimeLimit(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = codeOf(error);
  return error.name === 'TimeoutError' || code === 'UND_ERR_HEADERS_TIMEOUT' || code === 'UND_ERR_BODY_TIMEOUT';
}

/** Whether an error is made of what the other end sent: a refusal by TLS, or what is no HTTP. */
export function isAnswer(error: unknown): boolean {
  const code = codeOf(error);
  return typeof code === 'string' && /^(ERR_SSL_|HPE_|EPROTO$)/.test(code) && !/MALLOC/.test(code);
}

/**
 * Whether an error of a call is the silence of the other end or of the network. What isn't known to be that is this process's
 * own: none of its file descriptors, memory or ports are left, a name can't be looked up, the call was broken off here.
 */
export function isSilence(error: unknown): boolean {
  if (error instanceof AggregateError && error.errors.length > 0) {
    // One of the addresses of a name each; a host without IPv6 can't ask there, and need not.
    const asked = error.errors.filter(
      (one) => !(NO_SUCH_FAMILY.has(codeOf(one)) && isIPv6((one as { readonly address?: string }).address ?? '')),
    );
    return asked.length > 0 && asked.every(isSilence);
  }
  const code = codeOf(error);
  // For want of a descriptor a name seems to be unknown.
  if (code === 'ENOTFOUND' && processDescriptors.isScarce) return false;
  if (isTimeLimit(error) || OF_THE_NETWORK.has(code)) return true;
  return typeof code === 'string' && OF_THE_PEER.test(code) && !/MALLOC/.test(code);
}

/**
 * Makes a call with a time limit, in milliseconds, by descriptors that are held back where there are no others. Returns what it
 * brings. Throws `cannotAsk` of what kept this process from asking: its own lack, a name that was not found out in the time, or
 * that it was itself held up for longer than the limit; else what the call throws.
 */
export async function asking<Answer>(
  limitMs: number,
  lookup: LookupFunction,
  cannotAsk: (cause: unknown) => Error,
  call: (signal: AbortSignal, lookup: LookupFunction) => Promise<Answer>,
): Promise<Answer> {
  let namesUnknown = 0;
  let begun = performance.now();
  const watched: LookupFunction = (host, options, callback) => {
    namesUnknown += 1;
    lookup(host, options, (...found) => {
      namesUnknown -= 1;
      callback(...found);
    });
  };
  try {
    return await processDescriptors.use(() => {
      begun = performance.now();
      namesUnknown = 0;
      return call(AbortSignal.timeout(Math.ceil(limitMs)), watched);
    });
  } catch (error) {
    if (isAnswer(error)) throw error;
    const isLimit = isTimeLimit(error) || codeOf(error) === 'UND_ERR_CONNECT_TIMEOUT';
    const isOwn = namesUnknown > 0 || performance.now() - begun > limitMs + Math.max(limitMs, HELD_UP_MS);
    throw !isSilence(error) || (isLimit && isOwn) ? cannotAsk(error) : error;
  }
}
