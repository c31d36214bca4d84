/**
 * How the console is built (`npm run build` asks for it): files with names by their content, nothing inline, no request to
 * another host, so that the API can serve them under a Content-Security-Policy without exceptions.
 */
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

export default defineConfig({
  root: fileURLToPath(new URL('.', import.meta.url)),
  base: '/',
  clearScreen: false,
  logLevel: 'warn',
  build: {
    outDir: '../dist/mooring/console',
    emptyOutDir: true,
    // An inlined picture would be a data: address, which the policy does not let in.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2022',
    // What shows the API's document is larger than Vite likes; it is a page of its own.
    chunkSizeWarningLimit: 3_000,
    rolldownOptions: {
      // The console, and the API's own page.
      input: ['index.html', 'docs.html'].map((page) => fileURLToPath(new URL(page, import.meta.url))),
      output: {
        entryFileNames: 'assets/[name]-[hash].js',
        chunkFileNames: 'assets/[name]-[hash].js',
        assetFileNames: 'assets/[name]-[hash][extname]',
      },
    },
  },
});
