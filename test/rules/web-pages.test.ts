/** Only this machine is this machine: which pages and hosts may be the local operator's, in every spelling. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { hostName, isOfForeignPage, isOfPage, isOwnHost } from '../../platform/http/web-pages.ts';

const LOOPBACK = [
  ...['localhost', 'LOCALHOST', 'LocalHost', 'localhost.', 'app.localhost', 'a.b.localhost', 'app.localhost.'],
  ...[
    '127.0.0.1',
    '127.0.0.1.',
    '127.1',
    '127.0.1',
    '127.255.255.254',
    '2130706433',
    '0x7f000001',
    '0x7f.1',
    '0177.0.0.1',
  ],
  ...[
    '017700000001',
    '127.0.0.0x1',
    '[::1]',
    '[0:0:0:0:0:0:0:1]',
    '[0000::0001]',
    '[::ffff:127.0.0.1]',
    '[::FFFF:7F00:1]',
  ],
  ...['[::ffff:127.9.8.7]', '１２７.0.0.1', '127。0。0。1', 'ⓛocalhost'],
];
const OTHERS = [
  ...['203.0.113.7', '10.0.0.5', '192.168.1.1', '169.254.169.254', '0.0.0.0', '0', '128.0.0.1', '126.255.255.255'],
  ...[
    '3405803783',
    '0xcb007107',
    '0313.0.0161.7',
    '[2001:db8::7]',
    '[::]',
    '[::2]',
    '[fe80::1]',
    '[::ffff:203.0.113.7]',
  ],
  ...['[::ffff:10.0.0.5]', '[::127.0.0.1]', '[64:ff9b::7f00:1]', 'evil.example', 'localhost.evil.example'],
  ...[
    '127.0.0.1.evil.example',
    '127.0.0.1.nip.io',
    'localhost.localdomain',
    'evil-localhost',
    'notlocalhost',
    'evil',
    'ai',
  ],
  ...['control-plane', 'evil.', 'xn--e1afmkfd', 'localhostt', '127.evil.example'],
];
const PORTS = ['', ':80', ':443', ':5173', ':12220', ':65535'];

describe('a page', () => {
  test.each(LOOPBACK)('of %s is of this machine', (host) => {
    for (const scheme of ['http', 'https', 'HTTP'])
      for (const port of PORTS) {
        const origin = `${scheme}://${host}${port}`;
        expect([origin, isOfForeignPage({ origin, host: '127.0.0.1:12220' })]).toEqual([origin, false]);
        expect(isOfForeignPage({ origin, host: '127.0.0.1:12220', 'sec-fetch-site': 'same-site' })).toBe(false);
        expect(isOfForeignPage({ origin, host: '127.0.0.1:12220', 'sec-fetch-site': 'cross-site' })).toBe(true);
      }
  });

  test.each(OTHERS)('of %s is not', (host) => {
    for (const scheme of ['http', 'https', 'HTTP'])
      for (const port of PORTS)
        for (const site of [undefined, 'same-origin', 'same-site', 'cross-site', 'none']) {
          const origin = `${scheme}://${host}${port}`;
          const headers = {
            origin,
            host: '127.0.0.1:12220',
            ...(site === undefined ? {} : { 'sec-fetch-site': site }),
          };
          expect([origin, site, isOfForeignPage(headers)]).toEqual([origin, site, true]);
        }
  });

  test.each([
    ...['null', 'NULL', '', ' ', 'localhost', '127.0.0.1', '//localhost', 'file://', 'file://localhost', 'about:blank'],
    ...[
      'app://localhost',
      'tauri://localhost',
      'capacitor://localhost',
      'chrome-extension://localhost',
      'ftp://localhost',
    ],
    ...['ws://localhost', 'data:text/html,x', 'javascript:1', 'blob:http://localhost/x', 'http://', 'http://:80'],
    ...['http://localhost@evil.example', 'http://127.0.0.1:80@evil.example', 'http://evil.example@localhost'],
    ...[
      'http://user:password@127.0.0.1',
      'http://localhost, http://evil.example',
      'http://evil.example, http://localhost',
    ],
    ...[
      'http://localhost http://evil.example',
      'http://localhost:99999',
      'http://localhost:x',
      'http://[::1',
      'http://::1',
    ],
    ...['http://[::1%25lo]', 'http://local host', 'http://evil.example#localhost', 'http://evil.example/localhost'],
    ...[
      'http://evil.example?localhost',
      'http://evil.example\\@localhost',
      'http://localhost/../evil',
      'http://localhost#x',
    ],
    ...['http://localhost%2eevil.example', 'http://127.0.0.256', 'http://127.0.0.1.1'],
  ])('that says it is “%s” is not', (origin) => {
    expect(isOfForeignPage({ origin, host: '127.0.0.1:12220' })).toBe(true);
  });

  test('of the server’s own address is, of another port there not', () => {
    for (const [origin, host, foreign] of [
      ['http://192.0.2.1:12220', '192.0.2.1:12220', false],
      ['https://192.0.2.1', '192.0.2.1:443', false],
      ['http://[2001:db8::1]:12220', '[2001:DB8:0::1]:12220', false],
      ['http://192.0.2.1:12221', '192.0.2.1:12220', true],
      ['http://192.0.2.1', '192.0.2.1:12220', true],
      ['http://192.0.2.1:12220', '127.0.0.1:12220', true],
      ['http://192.0.2.1:12220', undefined, true],
      // A name may lead anywhere tomorrow.
      ['http://rebound.example:12220', 'rebound.example:12220', true],
      ['http://rebound:12220', 'rebound:12220', true],
    ] as const)
      expect([origin, host, isOfForeignPage({ origin, host })]).toEqual([origin, host, foreign]);
  });

  test('without an origin is known by what the browser says of its site', () => {
    for (const [site, foreign] of [
      ['same-origin', false],
      ['none', false],
      ['same-site', true],
      ['cross-site', true],
      ['Cross-Site', true],
      ['cross-site, same-origin', true],
      ['same-origin, cross-site', true],
      ['anything else', true],
      ['', true],
    ] as const) {
      expect([site, isOfForeignPage({ 'sec-fetch-site': site })]).toEqual([site, foreign]);
      expect(isOfPage({ 'sec-fetch-site': site })).toBe(true);
    }
    expect([isOfForeignPage({}), isOfPage({}), isOfPage({ origin: 'null' })]).toEqual([false, false, true]);
  });

  test('of an address is this machine’s where the address is a loopback address, and nowhere else', () => {
    fc.assert(
      fc.property(fc.ipV4(), fc.integer({ min: 1, max: 65535 }), (address, port) => {
        const origin = `http://${address}:${port}`;
        expect(isOfForeignPage({ origin, host: 'localhost:1' })).toBe(!address.startsWith('127.'));
        expect(isOfForeignPage({ origin: `http://[::ffff:${address}]:${port}`, host: 'localhost:1' })).toBe(
          !address.startsWith('127.'),
        );
      }),
    );
    fc.assert(
      fc.property(fc.domain(), (name) => {
        expect(isOfForeignPage({ origin: `https://${name}`, host: 'localhost:1' })).toBe(!name.endsWith('.localhost'));
        expect(isOwnHost(name)).toBe(name.endsWith('.localhost'));
      }),
    );
  });
});

/** Hosts that are nobody's, though they are addresses or bare names; `[::127.0.0.1]` and the like lead elsewhere. */
const STRANGERS = [...OTHERS, 'router', 'localhost.localdomain', 'broadcasthost', 'host.docker.internal', 'wpad'];

describe('a host', () => {
  test.each(LOOPBACK)('%s is this machine', (host) => {
    for (const port of ['', ':12220']) expect(isOwnHost(host + port)).toBe(true);
  });

  test.each([
    ...STRANGERS,
    ...[
      'rebound.evil.example',
      '',
      ' ',
      'localhost@evil.example',
      'evil.example@localhost',
      'localhost/x',
      'localhost?x',
      'localhost#x',
      'evil.example/@localhost',
      'localhost:x',
    ],
    ...['localhost, evil.example', '::1', '[::1', 'localhost\\@evil.example'],
  ])('“%s” is not', (host) => {
    for (const port of PORTS) expect([host + port, isOwnHost(host + port)]).toEqual([host + port, false]);
  });

  /** Where a connection came in, or what the operator has named; the hosts that are it; and some that look alike. */
  const OWN: readonly (readonly [own: string, hosts: readonly string[], others: readonly string[]])[] = [
    ['127.0.0.1', [], ['0.0.0.0', '[::]', '128.0.0.1']],
    ['::1', [], ['[::]', '[::2]', '[1::]']],
    ['::ffff:127.0.0.1', [], ['[::127.0.0.1]', '[64:ff9b::7f00:1]']],
    ['10.0.0.5', ['10.0.0.5', '0xa000005', '10.5'], ['10.0.0.6', '10.0.0.50', '[::10.0.0.5]', '10.0.0.5.nip.io']],
    ['::ffff:10.0.0.5', ['10.0.0.5'], ['10.0.0.6']],
    ['2001:db8::1', ['[2001:DB8:0::1]'], ['[2001:db8::2]', '2001:db8::1']],
    ['fe80::1%eth0', ['[fe80::1]'], ['[fe80::2]']],
    ['control-plane', ['control-plane', 'CONTROL-PLANE', 'control-plane.'], ['control-plane.evil.example', 'plane']],
    ['mooring.lan', ['mooring.lan', 'Mooring.LAN.'], ['lan', 'evil.mooring.lan', 'mooring.lan.evil.example']],
  ];
  test.each(OWN)('of the server at %s is what names it, and nothing else', (own, hosts, others) => {
    for (const port of PORTS) {
      for (const host of [...hosts, ...LOOPBACK]) expect([host, isOwnHost(host + port, [own])]).toEqual([host, true]);
      for (const host of [...others, ...STRANGERS.filter((name) => !hosts.includes(name))])
        if (hostName(host) !== hostName(own)) expect([host, isOwnHost(host + port, [own])]).toEqual([host, false]);
    }
  });

  test.each(OWN)('a page of the server at %s is its own at the same port alone', (own, hosts, others) => {
    for (const host of hosts) {
      const of = (origin: string) => isOfForeignPage({ origin, host: `${host}:12220` }, [own]);
      expect([host, of(`http://${host}:12220`), of(`http://${host}:12221`)]).toEqual([host, false, true]);
    }
    for (const host of others) {
      const name = hostName(host);
      if (name === null || /^[\d[]/.test(name)) continue;
      expect(isOfForeignPage({ origin: `http://${host}:12220`, host: `${host}:12220` }, [own])).toBe(true);
    }
  });

  test.each(['', ' ', 'a:80', 'a:', '[::1]:80', '10.0.0.5:12220', 'http://a', 'a/b', 'a@b', 'a b', '[::1'])(
    '“%s” names none',
    (text) => {
      expect(hostName(text)).toBeNull();
      expect(isOwnHost('localhost', [text])).toBe(true);
      expect(isOwnHost('a', [text])).toBe(false);
    },
  );
});
