import { isIP } from 'node:net';

/** Whether a host (`localhost` or an IP address; IPv6 with or without its brackets) is reachable from its own machine alone. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host === '[::1]' || (isIP(host) === 4 && host.startsWith('127.'));
}
