/** One host, one spelling: every way in which an address may be written, and what is the address of no host. */
import { isIPv4, isIPv6 } from 'node:net';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { canonicalAddress, hostOf, readHostAddress } from '../../model/host-address.ts';
import { socketAddress, splitAddress } from '../../wire/sled-protocol.ts';

const octet = fc.integer({ min: 0, max: 255 });
const hostV4 = fc
  .tuple(fc.integer({ min: 1, max: 223 }), octet, octet, octet)
  .map((octets) => ({ octets, address: octets.join('.') }));
const port = fc.integer({ min: 1, max: 65_535 });
const zeros = fc.integer({ min: 0, max: 4 });
/** Groups of an IPv6 address of a host, with runs of zeros; without those of tunnels. */
const groupsV6 = fc
  .array(fc.oneof(fc.constant(0), fc.constant(0), fc.integer({ min: 0, max: 0xffff })), { minLength: 7, maxLength: 7 })
  .chain((rest) => fc.integer({ min: 0x2003, max: 0x3fff }).map((first) => [first, ...rest]));

/** Every way to write the groups of an IPv6 address: case, leading zeros, any run of zeros as "::", IPv4 at the end. */
const writingV6 = (groups: readonly number[]) =>
  fc
    .record({
      upper: fc.array(fc.boolean(), { minLength: 8, maxLength: 8 }),
      padded: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 8, maxLength: 8 }),
      run: fc.nat(),
      dotted: fc.boolean(),
    })
    .map(({ upper, padded, run, dotted }) => {
      const written = groups.map((group, index) => {
        const text = group.toString(16).padStart(padded[index] ?? 1, '0');
        return upper[index] ? text.toUpperCase() : text;
      });
      const runs = groups.flatMap((_, from) =>
        groups.flatMap((__, to) =>
          to >= from && groups.slice(from, to + 1).every((g) => g === 0) ? [[from, to]] : [],
        ),
      );
      const [g6 = 0, g7 = 0] = groups.slice(6);
      const tail = dotted ? [`${g6 >> 8}.${g6 & 255}.${g7 >> 8}.${g7 & 255}`] : written.slice(6);
      const chosen = [...runs, null][run % (runs.length + 1)];
      const whole = [...written.slice(0, 6), ...tail];
      // A run that the dotted part belongs to can't be left out.
      if (chosen == null || (dotted && (chosen[1] ?? 0) > 5)) return whole.join(':');
      const [from = 0, to = 0] = chosen;
      return `${whole.slice(0, from).join(':')}::${whole.slice(to + 1).join(':')}`;
    });

describe('every way to write an address is the same one', () => {
  test('IPv4, with zeros before its numbers and its port, and as IPv4 in IPv6', () => {
    fc.assert(
      fc.property(hostV4, port, fc.array(zeros, { minLength: 5, maxLength: 5 }), ({ octets, address }, at, pads) => {
        const pad = (value: number, index: number) => '0'.repeat(pads[index] ?? 0) + value;
        const one = `${address}:${at}`;
        expect(canonicalAddress(`${octets.map(pad).join('.')}:${pad(at, 4)}`)).toBe(one);
        const [a = 0, b = 0, c = 0, d = 0] = octets;
        const low = `${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`;
        for (const mapped of [`::ffff:${address}`, `::FFFF:${low}`, `0:0:0:0:0:ffff:${low}`, `0000::ffff:${address}`])
          expect(canonicalAddress(`[${mapped}]:${at}`)).toBe(one);
        expect(isIPv4(splitAddress(one).host)).toBe(true);
      }),
    );
  });

  test('IPv6, in whatever case and however its zeros are left out, as the URL standard writes it', () => {
    fc.assert(
      fc.property(
        groupsV6.chain((groups) => fc.tuple(fc.constant(groups), writingV6(groups), writingV6(groups))),
        port,
        ([groups, one, other], at) => {
          const canonical = canonicalAddress(`[${one}]:${at}`);
          expect(canonicalAddress(`[${other}]:${at}`)).toBe(canonical);
          const whole = groups.map((group) => group.toString(16)).join(':');
          expect(hostOf(canonical)).toBe(new URL(`http://[${whole}]/`).hostname);
          expect(isIPv6(splitAddress(canonical).host)).toBe(true);
          expect(canonicalAddress(canonical)).toBe(canonical);
        },
      ),
    );
  });

  test('a DNS name, in whatever case, with a dot at its end or without', () => {
    const label = fc.stringMatching(/^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$/);
    fc.assert(
      fc.property(
        fc.array(label, { minLength: 1, maxLength: 5 }),
        port,
        fc.array(fc.boolean(), { minLength: 80, maxLength: 80 }),
        fc.boolean(),
        (labels, at, upper, dot) => {
          const name = labels.join('.');
          const written = [...name].map((letter, index) => (upper[index] ? letter.toUpperCase() : letter)).join('');
          expect(canonicalAddress(`${written}${dot ? '.' : ''}:${at}`)).toBe(`${name}:${at}`);
        },
      ),
    );
  });

  test('and different hosts stay different', () => {
    fc.assert(
      fc.property(hostV4, hostV4, groupsV6, groupsV6, (a, b, c, d) => {
        expect(canonicalAddress(`${a.address}:1`) === canonicalAddress(`${b.address}:1`)).toBe(a.address === b.address);
        const whole = (groups: readonly number[]) => groups.map((group) => group.toString(16)).join(':');
        expect(canonicalAddress(`[${whole(c)}]:1`) === canonicalAddress(`[${whole(d)}]:1`)).toBe(whole(c) === whole(d));
      }),
    );
  });
});

/** Each way in which IPv6 holds an IPv4 address but the one that is that address: how its groups follow, and what is said. */
const HOLDING: readonly (readonly [string, (high: number, low: number) => number[], RegExp])[] = [
  ['IPv4-compatible', (high, low) => [0, 0, 0, 0, 0, 0, high, low], /leads nowhere any more/],
  ['IPv4-translated', (high, low) => [0, 0, 0, 0, 0xffff, 0, high, low], /translator/],
  ['NAT64', (high, low) => [0x64, 0xff9b, 0, 0, 0, 0, high, low], /translator/],
  ['NAT64 of a site', (high, low) => [0x64, 0xff9b, 1, high, low, 0, 0, 0], /translator/],
  ['NAT64 of a site, at its end', (high, low) => [0x64, 0xff9b, 1, 0xfff, 1, 2, high, low], /translator/],
  ['6to4', (high, low) => [0x2002, high, low, 0, 0, 0, 0, 1], /6to4/],
  ['Teredo', (high, low) => [0x2001, 0, 1, 2, 3, 4, high, low], /Teredo/],
];

describe('an IPv4 address in IPv6 is that address, or refused', () => {
  test.each(HOLDING)('%s', (_, groupsOf, why) => {
    fc.assert(
      fc.property(
        // From 1.0.0.0 on: "::1" is a host.
        hostV4.chain(({ octets: [a = 0, b = 0, c = 0, d = 0] }) => writingV6(groupsOf(a * 256 + b, c * 256 + d))),
        port,
        (written, at) => {
          const read = readHostAddress(`[${written}]:${at}`);
          expect('refusal' in read ? read.refusal : read).toMatch(why);
        },
      ),
    );
  });

  test('and what lies beside those blocks is a host', () => {
    for (const host of ['[::1]', '[64:ff9a::1]', '[64:ff9b:2::1]', '[2003::1]', '[2001:1::1]', '[2001:db8::7f00:1]'])
      expect(readHostAddress(`${host}:8099`)).toEqual({ host, port: 8099 });
    for (const host of ['[100:0:0:2::1]', '[fd00::7f00:1]', '[fc00::1]', '[::1:0:0:1]', '[0:0:0:1::]', '[fe00::1]'])
      expect(canonicalAddress(`${host}:8099`)).toBe(`${new URL(`http://${host}`).hostname}:8099`);
  });
});

describe('what is the address of no host is refused, with the reason', () => {
  test.each([
    ['', /must be a host and a port/],
    ['10.0.0.7', /must be a host and a port/],
    [':8099', /must be a host and a port/],
    ['::1:8099', /must be a host and a port/],
    ['[::1]', /must be a host and a port/],
    ['http://10.0.0.7:8099', /must be a host and a port/],
    ['10.0.0.7:8099/', /must be a host and a port/],
    ['10.0.0.7:80 99', /must be a host and a port/],
    ['10.0.0.7:-1', /must be a host and a port/],
    ['10.0.0.7:0', /port/],
    ['10.0.0.7:65536', /port/],
    ['10.0.0.7:099999', /port/],
    ['999.1.1.1:8099', /IPv4/],
    ['10.0.0.256:8099', /IPv4/],
    ['10.0.0:8099', /IPv4/],
    ['10.0.0.0.7:8099', /IPv4/],
    ['127.1:8099', /IPv4/],
    ['2130706433:8099', /IPv4/],
    ['0x7f.0.0.1:8099', /IPv4/],
    ['0x7f000001:8099', /IPv4/],
    ['sled.example.7:8099', /IPv4/],
    ['0.0.0.0:8099', /no host/],
    ['0.1.2.3:8099', /no host/],
    ['224.0.0.1:8099', /multicast/],
    ['239.255.255.255:8099', /multicast/],
    ['240.0.0.1:8099', /reserved/],
    ['255.255.255.255:8099', /broadcast/],
    ['[::]:8099', /no host/],
    ['[0:0:0:0:0:0:0:0]:8099', /no host/],
    ['[::ffff:0.0.0.0]:8099', /no host/],
    ['[::ffff:224.0.0.1]:8099', /multicast/],
    ['[::ffff:255.255.255.255]:8099', /broadcast/],
    ['[ff02::1]:8099', /multicast/],
    ['[FF05::2]:8099', /multicast/],
    ['[fe80::1]:8099', /link-local/],
    ['[febf:ffff::1]:8099', /link-local/],
    ['[fec0::1]:8099', /site-local/],
    ['[feff::1]:8099', /site-local/],
    ['[100::1]:8099', /thrown away/],
    ['[100::ffff:ffff:ffff:ffff]:8099', /thrown away/],
    ['[100:0:0:1::1]:8099', /stands for none/],
    ['[::2]:8099', /leads nowhere/],
    ['[::127.0.0.1]:8099', /leads nowhere/],
    ['[::ffff:0:127.0.0.1]:8099', /translator/],
    ['[64:ff9b::127.0.0.1]:8099', /translator/],
    ['[2002:7f00:1::]:8099', /6to4/],
    ['[fe80::1%eth0]:8099', /zone/],
    ['[::1::2]:8099', /no IPv6/],
    ['[1:2:3:4:5:6:7]:8099', /no IPv6/],
    ['[1:2:3:4:5:6:7:8:9]:8099', /no IPv6/],
    ['[1:2:3:4::5:6:7:8]:8099', /no IPv6/],
    ['[12345::1]:8099', /no IPv6/],
    ['[g::1]:8099', /no IPv6/],
    ['[::10.0.0.256]:8099', /no IPv6/],
    ['[1.2.3.4::]:8099', /no IPv6/],
    ['[:1:2:3:4:5:6:7:8]:8099', /no IPv6/],
    ['[]:8099', /no IPv6/],
    ['sled_7:8099', /DNS name/],
    ['-sled:8099', /DNS name/],
    ['sled-.example:8099', /DNS name/],
    ['sled..example:8099', /DNS name/],
    ['.:8099', /DNS name/],
    ['sléd.example:8099', /DNS name/],
    [`${'a'.repeat(64)}.example:8099`, /DNS name/],
    [`${'a.'.repeat(127)}a:8099`, /DNS name/],
    ['user@sled:8099', /DNS name/],
    ['sled 7:8099', /DNS name/],
  ])('%s', (address, why) => {
    const read = readHostAddress(address);
    expect('refusal' in read ? read.refusal : read).toMatch(why);
    expect(socketAddress.safeParse(address).success).toBe(false);
  });

  test('whatever the text, it is read to a canonical address or refused, and never throws', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'0123456789abcfFx.:[]%-_ ') }), (text) => {
        const read = readHostAddress(text);
        const parsed = socketAddress.safeParse(text);
        expect(parsed.success).toBe(!('refusal' in read));
        if ('refusal' in read) return;
        const canonical = `${read.host}:${read.port}`;
        expect(readHostAddress(canonical)).toEqual(read);
        expect(parsed.data).toBe(canonical);
      }),
    );
  });
});

test('port 0 will do where one is to be chosen', () => {
  expect(readHostAddress('LOCALHOST:0', { anyPort: true })).toEqual({ host: 'localhost', port: 0 });
  expect(readHostAddress('[0::1]:00', { anyPort: true })).toEqual({ host: '[::1]', port: 0 });
});
