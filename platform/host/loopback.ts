import { isIP } from 'node:net';

/** Whether a host, as an address names it or as a URL does (IPv6 in brackets), is reachable from its own machine alone. */
export function isLoopback(hostname: string): boolean {
  return ['localhost', '::1', '[::1]'].includes(hostname) || (isIP(hostname) === 4 && hostname.startsWith('127.'));
}
