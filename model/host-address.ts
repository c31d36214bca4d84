/**
 * The address of a host: one spelling for each, so that one host can't be two sleds. IPv4 in decimal without leading zeros,
 * IPv6 in brackets as RFC 5952 writes it, an IPv4 address in IPv6 (`::ffff:0:0/96`) as IPv4, a DNS name in lower case
 * without a dot at its end.
 */

export interface HostAddress {
  /** IPv6 in its brackets. */
  readonly host: string;
  readonly port: number;
}

/** What an address is, or in words why it is none. */
export type ReadHostAddress = HostAddress | { readonly refusal: string };

/** The longest DNS name with its port, and a dot at its end. */
export const MAX_ADDRESS_LENGTH = 260;
const MAX_NAME_LENGTH = 253;

/** What an address looks like, for messages. */
export const ADDRESS_EXAMPLE =
  'a host and a port, for example "10.0.0.7:8099", "[2001:db8::7]:8099" or "sled-7.example:8099"';

/** Reads the address of one host. `anyPort`: port 0 will do as well, which has one chosen. */
export function readHostAddress(text: string, { anyPort = false }: { anyPort?: boolean } = {}): ReadHostAddress {
  const split = /^(\[[^[\]]*\]|[^[\]:]+):(\d{1,9})$/.exec(text);
  if (split === null) return { refusal: `must be ${ADDRESS_EXAMPLE}` };
  const port = Number(split[2]);
  if (port > 65_535 || (port === 0 && !anyPort)) return { refusal: 'the port must be 1 to 65535' };
  const host = readHost(split[1] ?? '');
  return typeof host === 'string' ? { host, port } : host;
}

/** The one spelling of an address; the text itself where it is none. */
export function canonicalAddress(text: string): string {
  const read = readHostAddress(text, { anyPort: true });
  return 'refusal' in read ? text : `${read.host}:${read.port}`;
}

/** The host of an address (IPv6 in its brackets). Checks nothing. */
export function hostOf(address: string): string {
  return address.slice(0, address.lastIndexOf(':'));
}

function readHost(text: string): string | { refusal: string } {
  if (text.startsWith('[')) return readIpv6(text);
  const labels = text.replace(/\.$/, '').toLowerCase().split('.');
  // A last label in digits is an IPv4 address's, in whatever way it is written. Source: WHATWG URL, "ends in a number".
  if (/^(\d+|0x[0-9a-f]*)$/.test(labels.at(-1) ?? '')) return readIpv4(text);
  return readName(labels);
}

function readIpv4(text: string): string | { refusal: string } {
  const octets = /^\d+\.\d+\.\d+\.\d+$/.test(text) ? text.split('.').map(Number) : [];
  if (octets.length !== 4 || octets.some((octet) => octet > 255))
    return { refusal: `"${text}" is no IPv4 address: four numbers from 0 to 255` };
  return checkedIpv4(octets);
}

function checkedIpv4(octets: readonly number[]): string | { refusal: string } {
  const address = octets.join('.');
  const [first = 0] = octets;
  if (first === 0) return { refusal: `${address} is the address of no host: name one at which others reach it` };
  if (first >= 224 && first < 240) return { refusal: `${address} is a multicast address, not a host's` };
  if (first >= 240) return { refusal: `${address} is a broadcast or reserved address, not a host's` };
  return address;
}

function readIpv6(text: string): string | { refusal: string } {
  if (text.includes('%'))
    return { refusal: `${text} has a zone, which means another thing on each host: name an address that all reach` };
  const groups = groupsOf(text.slice(1, -1));
  if (groups === null) return { refusal: `${text} is no IPv6 address` };
  const [first = 0] = groups;
  const low = [(groups[6] ?? 0) >> 8, (groups[6] ?? 0) & 255, (groups[7] ?? 0) >> 8, (groups[7] ?? 0) & 255];
  if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff) return checkedIpv4(low);
  const address = `[${compressed(groups)}]`;
  if (groups.every((group) => group === 0))
    return { refusal: `${address} is the address of no host: name one at which others reach it` };
  if (first >= 0xff00) return { refusal: `${address} is a multicast address, not a host's` };
  if ((first & 0xffc0) === 0xfe80)
    return { refusal: `${address} is a link-local address, which means another host on each link: name another one` };
  return address;
}

/** The eight groups of an IPv6 address as text; `null` when it is none. */
function groupsOf(text: string): number[] | null {
  const halves = text.split('::');
  if (halves.length > 2) return null;
  const [head, tail] = halves.map((half, index) => readGroups(half, index === halves.length - 1));
  if (head == null || tail === null) return null;
  if (tail === undefined) return head.length === 8 ? head : null;
  const missing = 8 - head.length - tail.length;
  // "::" stands for at least one group.
  return missing < 1 ? null : [...head, ...new Array<number>(missing).fill(0), ...tail];
}

/** The groups of a part without "::"; the last two may be written as IPv4 where it is the `last` part. */
function readGroups(text: string, last: boolean): number[] | null {
  if (text === '') return [];
  const groups: number[] = [];
  const parts = text.split(':');
  for (const [index, part] of parts.entries()) {
    if (part.includes('.')) {
      const octets = /^\d+\.\d+\.\d+\.\d+$/.test(part) ? part.split('.').map(Number) : [];
      if (!last || index !== parts.length - 1 || octets.length !== 4 || octets.some((octet) => octet > 255))
        return null;
      const [a = 0, b = 0, c = 0, d = 0] = octets;
      groups.push(a * 256 + b, c * 256 + d);
    } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) groups.push(Number.parseInt(part, 16));
    else return null;
  }
  return groups;
}

/** Source: RFC 5952: lower case, and the first of the longest runs of two zero groups or more is "::". */
function compressed(groups: readonly number[]): string {
  let [start, length] = [0, 1];
  for (let from = 0; from < groups.length; from++) {
    let to = from;
    while (groups[to] === 0) to += 1;
    if (to - from > length) [start, length] = [from, to - from];
  }
  const text = groups.map((group) => group.toString(16));
  if (length < 2) return text.join(':');
  return `${text.slice(0, start).join(':')}::${text.slice(start + length).join(':')}`;
}

/** Source: RFC 1123, section 2.1, and RFC 1035, section 2.3.4. */
function readName(labels: readonly string[]): string | { refusal: string } {
  const name = labels.join('.');
  if (name.length > MAX_NAME_LENGTH) return { refusal: `a DNS name has at most ${MAX_NAME_LENGTH} characters` };
  if (labels.every((label) => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(label))) return name;
  return {
    refusal: `"${name}" is no DNS name: labels of letters, digits and "-" between dots (other alphabets in Punycode, "xn--…")`,
  };
}
