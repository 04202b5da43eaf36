// Makes the bundle from src/ and the packages in package-lock.json. Run by scripts/build-page.
//
//   node build.mjs DIRECTORY      page.js, page.css, index.html, icon.svg, fonts/, licences.txt
//
// The same sources give the same bytes: nothing here depends on the time, the machine or the order of files.

import { build } from 'esbuild';
import { cp, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { en } from './src/words/en.js';
import { zh } from './src/words/zh.js';

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2];

/** Every browser that this page runs in knows woff2; the other forms of KaTeX's fonts stay outside. */
const onlyWoff2 = {
  name: 'only-woff2',
  setup({ onLoad }) {
    onLoad({ filter: /katex\.css$/ }, async ({ path }) => {
      const css = await readFile(path, 'utf8');
      return { contents: css.replace(/, ?url\([^)]*\) format\("(?:woff|truetype)"\)/g, ''), loader: 'css' };
    });
  },
};

function checkWords() {
  const missing = (from, to) => Object.keys(from).filter((key) => !Object.hasOwn(to, key));
  const names = (text) =>
    [...text.matchAll(/\{(\w+)\}/g)]
      .map((match) => match[1])
      .sort()
      .join();
  const faults = [
    // Chinese has no words of their own for one.
    ...missing(en, zh)
      .filter((key) => !key.endsWith('_one'))
      .map((key) => `'${key}' has no words in Chinese`),
    ...missing(zh, en).map((key) => `'${key}' has no words in English`),
    ...Object.keys(en)
      .filter((key) => zh[key] && names(en[key]) !== names(zh[key]))
      .map((key) => `'${key}' names other values`),
  ];
  if (faults.length) throw new Error(faults.join('\n'));
}

/** Returns the packages that files of the bundle come from, in order. */
function packagesOf(inputs) {
  const found = inputs.map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
  return [...new Set(found.filter(Boolean))].sort();
}

async function licenceOf(name) {
  const folder = join(here, 'node_modules', name);
  const { version, license } = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
  // Where a package offers a choice, its file LICENSE is the one of Apache, as nibble's own.
  const files = (await readdir(folder)).filter((file) => /^licen[cs]e/i.test(file) && !/MPL/.test(file)).sort();
  if (!files.length) throw new Error(`${name} ${version} comes without a licence`);
  const texts = await Promise.all(files.map((file) => readFile(join(folder, file), 'utf8')));
  return `${'='.repeat(80)}\n${name} ${version}: ${license}\n${'='.repeat(80)}\n\n${texts.join('\n').trim()}\n`;
}

checkWords();
await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: [
    { in: 'src/main.js', out: 'page' },
    { in: 'src/style.css', out: 'page' },
  ],
  outdir: out,
  bundle: true,
  minify: true,
  format: 'iife',
  target: ['chrome109', 'firefox115', 'safari16.4'],
  charset: 'utf8',
  legalComments: 'none',
  loader: { '.woff2': 'file' },
  assetNames: 'fonts/[name]',
  metafile: true,
  logLevel: 'warning',
  plugins: [onlyWoff2],
});
for (const file of ['index.html', 'icon.svg']) await cp(join(here, 'src', file), join(out, file));

const packages = packagesOf(Object.keys(metafile.inputs));
const heading = `The page that nibble serves at / is made of nibble's own code and of these packages:\n\n`;
const licences = await Promise.all(packages.map(licenceOf));
const list = licences.map((text) => `  ${text.split('\n')[1]}`).join('\n');
await writeFile(join(out, 'licences.txt'), `${heading}${list}\n\n${licences.join('\n')}`);

const outputs = Object.entries(metafile.outputs).map(([path, { bytes }]) => [
  relative(out, join(here, path)).split(sep).join('/'),
  bytes,
]);
const total = outputs.reduce((sum, [, bytes]) => sum + bytes, 0);
console.log(
  `build-page: ${outputs.length} files, ${Math.round(total / 1000)} kB, of them page.js ${Math.round(
    outputs.find(([path]) => path.endsWith('page.js'))[1] / 1000,
  )} kB`,
);
