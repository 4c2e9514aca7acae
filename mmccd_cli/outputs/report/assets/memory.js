"use strict";
// What a browser keeps for these pages. It may refuse to, for pages from the disk above all: then
// nothing is remembered from one visit to the next, and all else works the same.
const memory = {
  get(name) {
    try {
      return localStorage.getItem(`mmccd/${name}`);
    } catch {
      return null;
    }
  },
  // Returns whether it was kept.
  set(name, text) {
    try {
      localStorage.setItem(`mmccd/${name}`, text);
      return true;
    } catch {
      return false;
    }
  },
};
