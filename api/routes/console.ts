import type { FastifyReply, FastifyRequest } from 'fastify';
import { z } from 'zod';
import { HttpError } from '../../platform/http/http-errors.ts';
import type { ConsoleFiles, ServedFile } from '../console-files.ts';
import type { ApiApp } from '../context.ts';

/**
 * What a page may do: run and show what this server gave, and ask this server alone. Texts of guests and of other people are on it;
 * nothing that stands in them is ever run. Source: https://www.w3.org/TR/CSP3/
 */
export const CONTENT_SECURITY_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "font-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

const PAGE_HEADERS = {
  'content-security-policy': CONTENT_SECURITY_POLICY,
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'permissions-policy': 'camera=(), geolocation=(), microphone=(), payment=(), usb=()',
  'x-frame-options': 'DENY',
} as const;

/** A page is asked for anew each time, by its mark; what has its content in its name never changes. */
const PAGE_CACHE = 'no-cache';
const ASSET_CACHE = 'public, max-age=31536000, immutable';

/** Adds the console, and the API's own page. */
export function addConsoleRoutes(app: ApiApp, files: ConsoleFiles): void {
  app.get('/', { schema: { hide: true } }, async (request, reply) =>
    serve(request, reply, await files.page('index'), PAGE_CACHE),
  );
  app.get('/docs', { schema: { hide: true } }, async (request, reply) =>
    serve(request, reply, await files.page('docs'), PAGE_CACHE),
  );
  app.get(
    '/assets/:file',
    { schema: { hide: true, params: z.object({ file: z.string().max(100) }) } },
    async (request, reply) => serve(request, reply, await files.asset(request.params.file), ASSET_CACHE),
  );
}

function serve(request: FastifyRequest, reply: FastifyReply, file: ServedFile | null, cache: string): FastifyReply {
  if (file === null)
    throw new HttpError(
      404,
      cache === PAGE_CACHE
        ? 'the console was not built with this program: "npm run build" makes it; the API itself is below /v1'
        : 'no page of this build asks for this file: load the page anew',
    );
  reply.headers({ ...PAGE_HEADERS, 'cache-control': cache, etag: file.etag, vary: 'accept-encoding' });
  const known = (request.headers['if-none-match'] ?? '').split(',').map((tag) => tag.trim().replace(/^W\//, ''));
  if (known.includes(file.etag)) return reply.status(304).send();
  const takesGzip = /(^|,)\s*gzip\s*(;\s*q=(1|0\.[0-9]*[1-9])[^,]*)?(,|$)/.test(
    String(request.headers['accept-encoding'] ?? ''),
  );
  reply.type(file.type);
  if (file.gzipped === null || !takesGzip) return reply.send(file.body);
  return reply.header('content-encoding', 'gzip').send(file.gzipped);
}
