"""The paper reproduced with statistics: experiments as data, their results as CSV files, the report made from those."""
