//! How `weir top` looks, and what its keys do.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table, Tabs};

use super::panes::Pane;

/// What the person at the keys has chosen.
#[derive(Debug)]
pub(super) struct Choice {
    pane: usize,
    /// By pane: sort column and whether it is reversed.
    order: [(usize, bool); 4],
    filter: String,
    /// Keys go into the filter.
    typing: bool,
    pub(super) paused: bool,
    scrolled: usize,
}

impl Choice {
    pub(super) fn new(panes: &[Pane; 4]) -> Self {
        let order = panes.each_ref().map(|pane| (pane.sort, false));
        Self { pane: 0, order, filter: String::new(), typing: false, paused: false, scrolled: 0 }
    }

    /// Does what a key asks for. `false` = end.
    pub(super) fn key(&mut self, key: KeyEvent, panes: &[Pane; 4]) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return key.code != KeyCode::Char('c');
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) => self.filter.push(letter),
                _ => {}
            }
            return true;
        }
        let (column, reversed) = &mut self.order[self.pane];
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Tab | KeyCode::Right => self.go(self.pane + 1),
            KeyCode::BackTab | KeyCode::Left => self.go(self.pane + panes.len() - 1),
            KeyCode::Char(digit @ '1'..='4') => self.go(digit as usize - '1' as usize),
            KeyCode::Char('s') => *column = (*column + 1) % panes[self.pane].headers.len(),
            KeyCode::Char('r') => *reversed = !*reversed,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Down | KeyCode::Char('j') => self.scrolled += 1,
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::Home => self.scrolled = 0,
            _ => {}
        }
        true
    }

    fn go(&mut self, pane: usize) {
        (self.pane, self.scrolled) = (pane % self.order.len(), 0);
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, head: &[String; 2], panes: &[Pane; 4], choice: &mut Choice) {
    let [title, sums, tabs, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Length(1), Constraint::Min(2), Constraint::Length(1)])
            .areas(frame.area());
    let paused = if choice.paused { "   [paused]" } else { "" };
    frame.render_widget(Line::from(format!("weir top: {}{paused}", head[0])).bold(), title);
    frame.render_widget(Line::from(head[1].as_str()), sums);
    let titles = panes.iter().enumerate().map(|(index, pane)| format!("{} {}", index + 1, pane.name));
    frame.render_widget(Tabs::new(titles).select(choice.pane).highlight_style(Style::new().reversed()), tabs);

    let mut pane = panes[choice.pane].clone();
    let (column, reversed) = choice.order[choice.pane];
    pane.filter(&choice.filter);
    pane.sort(column, reversed);
    // The last row stays in sight.
    choice.scrolled = choice.scrolled.min(pane.rows.len().saturating_sub(1));
    frame.render_widget(list(&pane, column, reversed, choice.scrolled), body);

    let help = match (choice.typing, choice.filter.is_empty()) {
        (true, _) => format!("filter: {}_   enter keep   esc clear", choice.filter),
        (false, true) => "q quit   tab pane   s sort   r reverse   / filter   p pause   up/down scroll".into(),
        (false, false) => format!("filter: {}   / change   q quit", choice.filter),
    };
    frame.render_widget(Line::from(help).dim(), foot);
}

fn list(pane: &Pane, column: usize, reversed: bool, scrolled: usize) -> Table<'static> {
    let mark = if reversed { " ^" } else { " v" };
    let headers: Vec<String> =
        pane.headers.iter().enumerate().map(|(index, header)| format!("{header}{}", if index == column { mark } else { "" })).collect();
    let rows: Vec<Vec<String>> = pane.rows.iter().skip(scrolled).map(|row| row.iter().map(|cell| cell.text()).collect()).collect();
    let width = |index: usize| rows.iter().map(|row| row[index].chars().count()).chain([headers[index].len()]).max();
    let mut widths: Vec<Constraint> = (0..headers.len()).map(|index| Constraint::Length(width(index).unwrap_or(0) as u16)).collect();
    // Where there is too little room, the last column has less.
    if let Some(last) = widths.last_mut() {
        *last = Constraint::Fill(1);
    }
    Table::new(rows.into_iter().map(Row::new), widths).header(Row::new(headers).bold()).column_spacing(2)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::super::connections::Names;
    use super::super::panes::{head, panes, readings};
    use super::*;

    /// What stands on a terminal of 100 by 10 after these keys, without the spaces at the ends of lines.
    fn screen(keys: &[KeyCode]) -> String {
        let [before, now] = readings();
        let panes = panes(&now, &before, &Names::default());
        let mut choice = Choice::new(&panes);
        let mut terminal = Terminal::new(TestBackend::new(100, 10)).unwrap();
        for key in keys {
            assert!(choice.key(KeyEvent::from(*key), &panes), "{key:?} ends it");
        }
        terminal.draw(|frame| draw(frame, &head(&now, &before), &panes, &mut choice)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned();
        buffer.content.chunks(100).map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_first_screen_shows_the_ports() {
        assert_eq!(
            screen(&[]),
            "\
weir top: node node-a, generation 3, weir 0.1.0, up 60m
1.5k packets/s in, 1.5k out, 1 dropped; 1 workers 25.0% busy; 1 of 1048576 connections
 1 ports │ 2 workers │ 3 flows │ 4 drops
PORT        KIND    RX PPS v  RX BIT/S  TX PPS  TX BIT/S  RX PACKETS  TX PACKETS
shop/web-0  pod     750       600.0k    0       0         1500        7
eth1        uplink  500       400.0k    750     600.0k    1000        1500



q quit   tab pane   s sort   r reverse   / filter   p pause   up/down scroll"
        );
    }

    #[test]
    fn keys_choose_pane_order_and_filter() {
        let drops = screen(&[KeyCode::BackTab]);
        let lines: Vec<&str> = drops.lines().skip(3).take(4).map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(lines, ["REASON", "SERVICE_BACKEND_NOT_FOUND", "POLICY_DENIED", "TTL_EXCEEDED"]);
        // By the next column, packets, the other way round.
        let sorted = screen(&[KeyCode::Char('4'), KeyCode::Char('s'), KeyCode::Char('r')]);
        let lines: Vec<&str> = sorted.lines().skip(4).take(3).map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(lines, ["POLICY_DENIED", "TTL_EXCEEDED", "SERVICE_BACKEND_NOT_FOUND"]);
        let typed: Vec<KeyCode> = "/ttl".chars().map(KeyCode::Char).collect();
        let filtered = screen(&[&[KeyCode::Char('4')], &typed[..], &[KeyCode::Enter]].concat());
        assert!(filtered.contains("TTL_EXCEEDED") && !filtered.contains("POLICY_DENIED"), "{filtered}");
        assert!(filtered.ends_with("filter: ttl   / change   q quit"), "{filtered}");
        assert!(screen(&[KeyCode::Tab, KeyCode::Char('p')]).contains("[paused]"));
        assert!(!screen(&[KeyCode::Down, KeyCode::Down]).contains("shop/web-0"));
    }

    #[test]
    fn q_ends_it_and_in_the_filter_it_is_a_letter() {
        let [before, now] = readings();
        let panes = panes(&now, &before, &Names::default());
        let mut choice = Choice::new(&panes);
        assert!(choice.key(KeyCode::Char('/').into(), &panes) && choice.key(KeyCode::Char('q').into(), &panes));
        assert!(choice.key(KeyCode::Esc.into(), &panes));
        assert!(!choice.key(KeyCode::Char('q').into(), &panes));
    }
}
