/**
 * Runs a command and draws what it printed, colours and all, as an SVG: the documents' pictures are real output.
 *
 *   tsx test/e2e/terminal-picture.ts docs/demo.svg -- npx mooring demo
 */
import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';

const COLUMNS = 108;
const CHARACTER_PX = 7.8;
const LINE_PX = 18;
const MARGIN_PX = 16;
const FOREGROUND = '#d8dee9';
/** The colours of the SGR codes that the commands use. */
const COLOURS: Readonly<Record<string, string>> = {
  '31': '#bf616a',
  '32': '#a3be8c',
  '33': '#ebcb8b',
  '34': '#81a1c1',
  '35': '#b48ead',
  '36': '#88c0d0',
  '90': '#7b8394',
};

interface Style {
  readonly colour: string;
  readonly bold: boolean;
  readonly dim: boolean;
}
const PLAIN: Style = { colour: FOREGROUND, bold: false, dim: false };

/** Draws a terminal's lines as an SVG. */
function drawTerminal(command: string, output: string): string {
  const lines = [`$ ${command}`, ...output.replace(/\r/g, '').trimEnd().split('\n')];
  let style = PLAIN;
  const drawn = lines.map((line, index) => {
    const spans: string[] = [];
    let left = COLUMNS;
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the escape character begins every colour.
    for (const part of line.split(/(\u001b\[[\d;]*m)/)) {
      // biome-ignore lint/suspicious/noControlCharactersInRegex: as above.
      const codes = /^\u001b\[([\d;]*)m$/.exec(part)?.[1];
      if (codes !== undefined) {
        for (const code of codes.split(';')) style = styled(style, code);
        continue;
      }
      const text = part.length > left ? `${part.slice(0, Math.max(0, left - 1))}…` : part;
      if (left > 0 && text !== '') spans.push(span(text, style));
      left -= part.length;
    }
    const y = MARGIN_PX + (index + 1) * LINE_PX - 5;
    return `<text x="${MARGIN_PX}" y="${y}" xml:space="preserve">${spans.join('')}</text>`;
  });
  const width = Math.ceil(2 * MARGIN_PX + COLUMNS * CHARACTER_PX);
  const height = 2 * MARGIN_PX + lines.length * LINE_PX;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img">`,
    `<title>${escapeXml(command)}</title>`,
    `<rect width="100%" height="100%" rx="8" fill="#2e3440"/>`,
    `<g font-family="ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace" font-size="13">`,
    ...drawn,
    '</g></svg>',
    '',
  ].join('\n');
}

function styled(style: Style, code: string): Style {
  switch (code) {
    case '':
    case '0':
      return PLAIN;
    case '1':
      return { ...style, bold: true };
    case '2':
      return { ...style, dim: true };
    case '22':
      return { ...style, bold: false, dim: false };
    case '39':
      return { ...style, colour: FOREGROUND };
    default:
      return { ...style, colour: COLOURS[code] ?? style.colour };
  }
}

function span(text: string, { colour, bold, dim }: Style): string {
  const weight = bold ? ' font-weight="bold"' : '';
  const opacity = dim ? ' opacity="0.6"' : '';
  return `<tspan fill="${colour}"${weight}${opacity}>${escapeXml(text)}</tspan>`;
}

function escapeXml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

const [file, separator, program, ...args] = process.argv.slice(2);
if (file !== undefined) {
  if (separator !== '--' || program === undefined) throw new Error('usage: terminal-picture.ts FILE.svg -- COMMAND…');
  const child = spawn(program, args, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, FORCE_COLOR: '1' },
  });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => {
    process.stdout.write(chunk);
    output += chunk.toString('utf8');
  });
  const code = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  if (code !== 0) throw new Error(`${program} ended with ${code}: nothing was drawn`);
  await writeFile(file, drawTerminal([program, ...args].join(' '), output));
}
