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
 * Whether a request is of a page that is not of this machine: its origin is neither a loopback address nor the server's own,
 * or a browser marks it as another site's.
 */
export function isOfForeignPage(headers: IncomingHttpHeaders): boolean {
  const { origin, host } = headers;
  if (origin !== undefined && !isOwnOrigin(origin, host)) return true;
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

/** Whether a `Host` names this machine: by an address, or by a bare or local name, which no site on the internet has. */
export function isOwnHost(host: string): boolean {
  const url = parse(`http://${host}`);
  if (url === null) return false;
  const name = nameIn(url);
  return isAddress(name) || isLoopbackName(name) || !name.includes('.');
}

function isOwnOrigin(origin: string, host: string | undefined): boolean {
  const url = parse(origin);
  if (url === null || !['http:', 'https:'].includes(url.protocol)) return false;
  if (isLoopbackName(nameIn(url))) return true;
  // The server's own by an address: a name may lead anywhere tomorrow.
  return isAddress(nameIn(url)) && host !== undefined && parse(`${url.protocol}//${host}`)?.host === url.host;
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
