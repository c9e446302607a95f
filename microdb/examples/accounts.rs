//! Moves money between accounts. Shows transactions that end with an error of the program,
//! counters that many threads change, and a consistent view.
//!
//!     cargo run --example accounts -- FOLDER

use std::fmt;
use std::path::Path;

use microdb::{Db, Snapshot, TypedTable};

type Accounts = TypedTable<String, u64>;
type Journal = TypedTable<u64, (String, String, u64)>;

/// The reasons why money is not moved.
#[derive(Debug)]
pub(crate) enum TransferError {
    /// The account has less than the amount.
    TooLittle {
        /// Money in the account.
        has: u64,
    },
    /// An error of the database.
    Database(microdb::Error),
}

/// Lets `?` pass errors of the database through a transaction.
impl From<microdb::Error> for TransferError {
    fn from(error: microdb::Error) -> Self {
        Self::Database(error)
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLittle { has } => write!(f, "the account has only {has}"),
            Self::Database(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for TransferError {}

/// The database of the program and its tables.
pub(crate) struct Bank {
    db: Db,
    accounts: Accounts,
    journal: Journal,
    counters: TypedTable<String, u64>,
}

impl Bank {
    /// Opens the bank in a folder.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) fn open(folder: &Path) -> microdb::Result<Self> {
        let db = Db::open(folder)?;
        Ok(Self {
            accounts: db.typed_table("accounts")?,
            journal: db.typed_table("journal")?,
            counters: db.typed_table("counters")?,
            db,
        })
    }

    /// Adds `amount` to an account. Returns the money that the account then has. Any number of
    /// threads may call this method at the same time.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) fn pay_in(&self, account: &str, amount: u64) -> microdb::Result<u64> {
        let now = self
            .accounts
            .update(account, |money| Some(money.unwrap_or(0) + amount))?;
        Ok(now.unwrap_or(0))
    }

    /// Moves money and records the transfer in the journal, both in one transaction.
    ///
    /// # Errors
    /// [`TransferError::TooLittle`], after which nothing has changed, and errors of the database.
    pub(crate) fn transfer(&self, from: &str, to: &str, amount: u64) -> Result<(), TransferError> {
        // The closure runs again if another thread changed one of the keys that it has read.
        self.db.transaction(|tx| {
            let has = tx.get(&self.accounts, from)?.unwrap_or(0);
            let rest = has.checked_sub(amount).ok_or(TransferError::TooLittle { has })?;
            tx.put(&self.accounts, from, &rest)?;
            let had = tx.get(&self.accounts, to)?.unwrap_or(0);
            tx.put(&self.accounts, to, &(had + amount))?;
            let number = tx.get(&self.counters, "journal")?.unwrap_or(0) + 1;
            tx.put(&self.counters, "journal", &number)?;
            tx.put(&self.journal, &number, &(from.to_owned(), to.to_owned(), amount))?;
            Ok(())
        })
    }

    /// Returns the money of all accounts at one moment.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) fn total(&self) -> microdb::Result<u64> {
        let moment: Snapshot = self.db.snapshot();
        moment.iter(&self.accounts)?.map(|account| Ok(account?.1)).sum()
    }

    /// Returns the number of transfers.
    #[must_use]
    pub(crate) fn transfers(&self) -> u64 {
        self.journal.len()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: accounts FOLDER")?;
    let bank = Bank::open(Path::new(&folder))?;
    println!("ann has {} now", bank.pay_in("ann", 100)?);
    bank.transfer("ann", "bob", 70)?;
    match bank.transfer("ann", "bob", 1_000_000) {
        Err(TransferError::TooLittle { has }) => println!("ann has only {has}"),
        other => other?,
    }
    println!(
        "{} in all accounts after {} transfers",
        bank.total()?,
        bank.transfers()
    );
    Ok(())
}
