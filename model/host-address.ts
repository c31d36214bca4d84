/**
 * The address of a host: one spelling for each, so that one host can't be two sleds. IPv4 in decimal without leading zeros,
 * IPv6 in brackets as RFC 5952 writes it, an IPv4 address in IPv6 (`::ffff:0:0/96`) as IPv4, a DNS name in lower case
 * without a dot at its end. Every other way in which IPv6 holds an IPv4 address is refused: a translator or a tunnel decides what
 * it leads to.
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

/** Whether an address to listen on is every one of its machine's. Checks nothing else. */
export function listensEverywhere(address: string): boolean {
  return /^(0\.0\.0\.0|\[::\]):/.test(address);
}

/** Why nothing can listen on an address; `null` where it can be: one of this machine's, or all of them. */
export function refuseToListen(address: string): string | null {
  // Of all of them, the port is what can be wrong.
  const one = listensEverywhere(address) ? `127.0.0.1${address.slice(address.lastIndexOf(':'))}` : address;
  const read = readHostAddress(one, { anyPort: true });
  return 'refusal' in read ? read.refusal : null;
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
  const low = [(groups[6] ?? 0) >> 8, (groups[6] ?? 0) & 255, (groups[7] ?? 0) >> 8, (groups[7] ?? 0) & 255];
  if (isWithin(groups, [0, 0, 0, 0, 0, 0xffff], 96)) return checkedIpv4(low);
  const address = `[${compressed(groups)}]`;
  const found = NO_HOSTS.find(({ prefix, bits }) => isWithin(groups, prefix, bits));
  return found?.why == null ? address : { refusal: `${address} is ${found.why}` };
}

/** Addresses of IPv6, by the groups of their prefix and its length in bits: what they are where that is no host's own address. */
interface Ipv6Block {
  readonly prefix: readonly number[];
  readonly bits: number;
  /** `null`: a host's after all. */
  readonly why: string | null;
}

const OF_A_TRANSLATOR = "an IPv4 address as a translator writes it: name the host's own address, or a DNS name";

/**
 * The first that fits counts. Sources: https://www.iana.org/assignments/iana-ipv6-special-registry/; RFC 4291, 2.5.5.1 (`::/96`);
 * RFC 7915 (`::ffff:0:0:0/96`); RFC 6052 and 8215 (NAT64); RFC 7526 (6to4); RFC 4380 (Teredo); RFC 6666 and 9780 (discard,
 * dummy); RFC 3879 (`fec0::/10`). Those of documentation count as hosts', as in IPv4.
 */
const NO_HOSTS: readonly Ipv6Block[] = [
  { prefix: [0, 0, 0, 0, 0, 0, 0, 1], bits: 128, why: null },
  { prefix: [], bits: 128, why: 'the address of no host: name one at which others reach it' },
  { prefix: [], bits: 96, why: 'an IPv4 address in a form that leads nowhere any more: write it as IPv4' },
  { prefix: [0, 0, 0, 0, 0xffff, 0], bits: 96, why: OF_A_TRANSLATOR },
  { prefix: [0x64, 0xff9b], bits: 96, why: OF_A_TRANSLATOR },
  { prefix: [0x64, 0xff9b, 1], bits: 48, why: OF_A_TRANSLATOR },
  { prefix: [0x2002], bits: 16, why: 'an IPv4 address as a tunnel (6to4) writes it: write it as IPv4' },
  { prefix: [0x2001, 0], bits: 32, why: 'an IPv4 address as a tunnel (Teredo) writes it: write it as IPv4' },
  { prefix: [0x100], bits: 64, why: 'an address to which everything is thrown away, no host' },
  { prefix: [0x100, 0, 0, 1], bits: 64, why: 'an address that stands for none, no host' },
  { prefix: [0xff00], bits: 8, why: "a multicast address, not a host's" },
  {
    prefix: [0xfe80],
    bits: 10,
    why: 'a link-local address, which means another host on each link: name another one',
  },
  {
    prefix: [0xfec0],
    bits: 10,
    why: 'a site-local address, which means another host at each site, and nothing any more: name another one',
  },
];

/** Whether the first `bits` of an address are those of a prefix, whose last groups may be left out where they are zero. */
function isWithin(groups: readonly number[], prefix: readonly number[], bits: number): boolean {
  return groups.every((group, index) => {
    const counted = Math.min(16, Math.max(0, bits - 16 * index));
    const mask = (0xffff << (16 - counted)) & 0xffff;
    return (group & mask) === ((prefix[index] ?? 0) & mask);
  });
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
