/**
 * What a page in somebody's browser can send to a server that listens on this machine alone: a page of any site can, too. Its
 * request names the page as its origin, or the site's name as its host (DNS rebinding), and a browser marks what comes from
 * another site. Sources: RFC 6454; https://www.w3.org/TR/fetch-metadata/.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { isIP } from 'node:net';

/** Whether a browser sent a request for a page; no program of ours does. */
export function isOfPage(headers: IncomingHttpHeaders): boolean {
  return headers.origin !== undefined || headers['sec-fetch-site'] !== undefined;
}

/**
 * Whether a browser asks for what a person is to look at in a tab: whatever page led there, it can't read it. Scripts can't say
 * so of a request of theirs.
 */
export function isForPerson(headers: IncomingHttpHeaders): boolean {
  return headers['sec-fetch-mode'] === 'navigate' && headers['sec-fetch-dest'] === 'document';
}

/**
 * Whether a request is of a page that is not of this machine: its origin is neither a loopback address nor the server's own,
 * or a browser marks it as another site's. `own` are the hosts by which the server is known besides.
 */
export function isOfForeignPage(headers: IncomingHttpHeaders, own: readonly string[] = []): boolean {
  const { origin, host } = headers;
  if (origin !== undefined && !isOwnOrigin(origin, host, own)) return true;
  switch (headers['sec-fetch-site']) {
    case undefined:
    case 'none':
    case 'same-origin':
      return false;
    case 'same-site':
      // Another port or name of this machine is one as long as it shows itself.
      return origin === undefined;
    default:
      return true;
  }
}

/**
 * Whether a `Host` names this machine, or the server: by a loopback address, or by one of `own`, which are addresses and names
 * without a port. A bare name is nobody's: whoever answers for a network's names gives it.
 */
export function isOwnHost(host: string, own: readonly string[] = []): boolean {
  const url = parse(`http://${host}`);
  return url !== null && (isLoopbackName(nameIn(url)) || isOneOf(nameIn(url), own));
}

/** A host without a port in the one spelling that URLs give it (IPv6 in brackets); `null` for any other text. */
export function hostName(text: string): string | null {
  // What a socket tells of a link-local address, and of an IPv4 address where it listens on IPv6.
  const address = text.replace(/%.*$/, '').replace(/^::ffff:(?=[\d.]+$)/i, '');
  const written = isIP(address) === 6 ? `[${address}]` : address;
  // A port would say more than a host.
  const url = /:\d*$/.test(written) ? null : parse(`http://${written}`);
  return url && nameIn(url);
}

function isOneOf(name: string, own: readonly string[]): boolean {
  return own.some((each) => hostName(each) === name);
}

function isOwnOrigin(origin: string, host: string | undefined, own: readonly string[]): boolean {
  const url = parse(origin);
  if (url === null || !['http:', 'https:'].includes(url.protocol)) return false;
  if (isLoopbackName(nameIn(url))) return true;
  // The server's own by an address, or by a name that its operator gave it: any other may lead anywhere tomorrow.
  const isNamed = isAddress(nameIn(url)) || isOneOf(nameIn(url), own);
  return isNamed && host !== undefined && parse(`${url.protocol}//${host}`)?.host === url.host;
}

/** A URL that is a host and a port alone; `null` for any other text. */
function parse(text: string): URL | null {
  if (!URL.canParse(text)) return null;
  const url = new URL(text);
  const more = url.username + url.password + url.search + url.hash;
  return more === '' && ['', '/'].includes(url.pathname) ? url : null;
}

/** The host that a URL names, as its parser has brought it to one spelling (IPv6 in brackets), without the dot at its end. */
function nameIn(url: URL): string {
  return url.hostname.replace(/\.$/, '');
}

function isAddress(name: string): boolean {
  return name.startsWith('[') || isIP(name) === 4;
}

function isLoopbackName(name: string): boolean {
  return (
    name === 'localhost' ||
    name.endsWith('.localhost') ||
    name === '[::1]' ||
    // 127.0.0.0/8, also as IPv6 has it.
    (isIP(name) === 4 && name.startsWith('127.')) ||
    /^\[::ffff:7f[0-9a-f]{2}:[0-9a-f]{1,4}\]$/.test(name)
  );
}
