// Brings the page up to date without loading it anew, so that it stays where it is scrolled to.
'use strict';

const kSeconds = 5;

function selectsText() {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed;
}

async function refresh() {
  if (document.hidden || selectsText()) return;
  const freshness = document.getElementById('freshness');
  try {
    // Without the name and password that the page's own address may have.
    const address = new URL(location.pathname + location.search, location.origin);
    const reply = await fetch(address, {cache: 'no-store', redirect: 'error'});
    if (!reply.ok) throw new Error(`the coordinator answers ${reply.status}`);
    const page = new DOMParser().parseFromString(await reply.text(), 'text/html');
    document.querySelector('main').replaceWith(document.adoptNode(page.querySelector('main')));
    document.title = page.title;
    document.body.classList.remove('stale');
    freshness.textContent = `refreshed every ${kSeconds} s`;
  } catch (error) {
    document.body.classList.add('stale');
    freshness.textContent = `not up to date: ${error.message}`;
  }
}

document.getElementById('freshness').textContent = `refreshed every ${kSeconds} s`;
setInterval(refresh, kSeconds * 1000);
