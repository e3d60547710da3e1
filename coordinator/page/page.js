// Brings the page up to date without loading it anew, so that it stays where it is scrolled to.
'use strict';

const kSeconds = 5;
// A refresh that takes longer than that is not overtaken by the next one.
let busy = false;

function selectsText() {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed;
}

async function refresh() {
  if (busy || document.hidden || selectsText()) return;
  busy = true;
  const freshness = document.getElementById('freshness');
  try {
    // Without the name and password that the page's own address may have.
    const address = new URL(location.pathname + location.search, location.origin);
    const reply = await fetch(address, {cache: 'no-store', redirect: 'error'});
    // Asked again, a browser would go on sending a token that is not in force any more.
    if (reply.status === 401) clearInterval(timer);
    if (!reply.ok) throw new Error(`the coordinator answers ${reply.status}`);
    const page = new DOMParser().parseFromString(await reply.text(), 'text/html');
    document.querySelector('main').replaceWith(document.adoptNode(page.querySelector('main')));
    document.title = page.title;
    document.body.classList.remove('stale');
    freshness.textContent = `refreshed every ${kSeconds} s`;
  } catch (error) {
    document.body.classList.add('stale');
    freshness.textContent = `not up to date: ${error.message}`;
  } finally {
    busy = false;
  }
}

document.getElementById('freshness').textContent = `refreshed every ${kSeconds} s`;
const timer = setInterval(refresh, kSeconds * 1000);
